"""Models, data and settings that plans are made for."""

import pytest

from disp.data.loading import load_dataset
from disp.data.sample import Query, Sample, Turn
from disp.data.saving import save_dataset
from disp.decoding.samplers import decode_config
from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.loading import load_model
from disp.planning.plan import PlanSettings
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.training.config import TrainConfig


@pytest.fixture(scope="session")
def builtin():
    return load_model(device="cpu")


@pytest.fixture(scope="session")
def larger(builtin):
    """Twice as wide, half as deep again, with grouped keys; random weights."""
    config = builtin.config
    vision = {**config.vision, "hidden_size": 320, "intermediate_size": 1280, "num_attention_heads": 10}
    model = BuiltinModel(
        BuiltinConfig(
            vocab_size=config.vocab_size, hidden_size=320, intermediate_size=864, num_hidden_layers=6,
            num_attention_heads=10, num_key_value_heads=5, gen_length=32, vision=vision,
        )
    )  # fmt: skip
    model.tokenizer = builtin.tokenizer
    return model.eval()


@pytest.fixture(scope="session")
def measured_models(builtin, larger):
    return {"built-in": builtin, "larger": larger}


@pytest.fixture(scope="session")
def asked(picture):
    return [Query(str(index), 0, (picture(index, 96),), (), "<image>\nDescribe the picture.") for index in range(4)]


@pytest.fixture(scope="session")
def data(tmp_path_factory, picture):
    """Eleven samples: a few with two turns, one without a picture."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    samples = []
    for number in range(11):
        path = folder / "images" / f"{number}.png"
        picture(number).save(path)
        turns = (Turn("Is there a boat?", "no"), Turn("What is a cat?", "a"))[: 1 + (number % 4 == 1)]
        samples.append(Sample(str(number), () if number == 6 else (path,), turns))
    save_dataset(samples, folder / "data.json", folder / "images")
    return load_dataset(folder)


@pytest.fixture(scope="session")
def settings():
    scoring = ScoringConfig(batch_size=4, mask_ratio=0.5, candidates=3, saliency=SaliencyConfig(probes=3))
    purify = PurifyConfig(
        mode="all", batch_size=4, mask_ratio=0.5, scoring=scoring, decode=decode_config(gen_length=4, steps=4)
    )
    return PlanSettings(
        dtype="float32", purify=purify, train=TrainConfig(steps=3, batch_size=2), attacked=True,
        evaluation_batch_size=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    return folder
