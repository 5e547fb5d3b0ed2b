"""Purification as the scripts of DiSP's authors do it, against the same steps taken one by one."""

import json
from dataclasses import replace

import pytest
import torch
from models.tiny import FAMILIES, write_checkpoint

from disp.cli import app
from disp.commands.scoring import Rewriting
from disp.data.loading import load_dataset
from disp.data.sample import Query, Sample, Turn
from disp.decoding.generate import answers_of
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.loading import load_model
from disp.purification.config import PUBLISHED_RATIO, PurifyConfig
from disp.purification.purify import purify
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.saliency import saliency

QUESTION = "Describe this image in detail."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaDA-V, which has newline vectors between the rows of visual tokens."""
    return write_checkpoint(
        "llada_v", tmp_path_factory.mktemp("model") / "m", [QUESTION, "A cat and a dog.", "Is it red?"]
    )


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, device="cpu")


@pytest.fixture
def dataset(tmp_path, picture):
    rows = []
    (tmp_path / "data" / "images").mkdir(parents=True)
    for index in range(3):
        picture(index).resize((40, 30)).save(tmp_path / "data" / "images" / f"{index}.png")
        talk = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "A cat."}]
        if index == 1:
            talk += [{"from": "human", "value": "Is it a dog?"}, {"from": "gpt", "value": "A dog."}]
        rows.append({"id": f"r{index}", "image": f"{index}.png", "conversations": talk})
    rows.append(
        {"id": "text", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "A dog."}]}
    )
    (tmp_path / "data" / "data.json").write_text(json.dumps(rows))
    return load_dataset(tmp_path / "data")


def test_every_first_answer_is_the_one_under_the_published_mask(model, dataset, tmp_path):
    decode = decode_config(gen_length=8, steps=8, block_length=8, stop=model.generation_defaults["stop"])
    config = PurifyConfig.published(model, decode=decode)
    result = purify(model, dataset, config, tmp_path / "out")
    assert set(result.rewritten) == {"r0", "r1", "r2"}
    for before, after in zip(dataset.samples, result.dataset.samples, strict=True):
        if before.id == "text":
            assert after == before
            continue
        assert after.turns[1:] == before.turns[1:]
        assert after.turns[0].prompt == before.turns[0].prompt
        # The same by hand: one question, all tokens of the picture's span, the floor of 30% of them.
        query = Query(before.id, 0, before.images, (), f"<image>\n{QUESTION}", "A cat.")
        prefix = model.encode([query])
        span = prefix.visual_mask | prefix.separators
        scores = saliency(model, prefix, [query.key], SaliencyConfig.published(), 32, block_length=32)
        order = scores[0].masked_fill(~span[0], -1).argsort(descending=True)
        masked = torch.zeros_like(span)
        masked[0, order[: int(0.3 * int(span.sum()))]] = True
        (wanted,) = answers_of(model, prefix.with_masked(masked, model.mask_embedding), decode, keys=[query.key])
        assert after.turns[0].response == wanted
    rows = [json.loads(line) for line in (tmp_path / "out" / "evidence.jsonl").read_text().splitlines()]
    assert [len(row["turns"]) for row in rows] == [1, 1, 1, 1]
    assert rows[0]["turns"][0]["prompt"] == f"<image>\n{QUESTION}"
    assert len(rows[0]["turns"][0]["saliency"]) == int(span.sum())


def test_the_preset_s_settings():
    config = PurifyConfig.published()
    assert (config.mode, config.mask_ratio, config.rounding, config.first_only) == ("all", 0.3, "down", True)
    assert (config.decode.gen_length, config.decode.steps, config.question) == (32, 32, QUESTION)
    assert config.scoring.saliency == SaliencyConfig.published()
    with pytest.raises(DispError, match="first_only"):
        PurifyConfig(question="What is it?")


def test_the_first_question_is_asked_with_its_own_pictures(picture):
    pictures = (picture(0), picture(1))
    sample = Sample("two", pictures, (Turn("<image>\nIs it red?", "A cat."), Turn("<image>\nAnd this?", "A dog.")))
    for config in (PurifyConfig.published(), replace(PurifyConfig.published(), question=None)):
        (query,) = config.asked(sample).queries
        assert query.images == pictures[:1] and query.prompt.count("<image>") == 1


def test_the_command(folder, dataset, tmp_path):
    def run(*options: str) -> None:
        arguments = ["purify", folder, dataset.path, "--out", tmp_path / "out", "--preset", "published", *options]
        app([str(each) for each in arguments], print_error=False, exit_on_error=False, result_action="return_value")

    run("--mask-ratio", "0.45", "--probes", "2", "--device", "cpu")
    config = json.loads((tmp_path / "out" / "purify.json").read_text())["config"]
    assert (config["mask_ratio"], config["question"], config["decode"]["steps"]) == (0.45, QUESTION, 32)
    assert (config["scoring"]["saliency"]["probes"], config["scoring"]["saliency"]["in_graph"]) == (2, True)
    for option, value in (("score", "directional"), ("score", "isotropic"), ("mode", "selective")):
        with pytest.raises(DispError, match=f"--{option} does not go with --preset published"):
            run(f"--{option}", value)


def test_the_batch_size_is_that_of_scoring_too():
    config = PurifyConfig.published(batch_size=4, probes=3)
    assert (config.batch_size, config.scoring.batch_size, config.scoring.saliency.probes) == (4, 4, 3)


def test_what_is_given_wins_over_the_preset_also_where_it_is_the_usual_value(model):
    usual = PurifyConfig().mask_ratio
    assert Rewriting(preset="published", mask_ratio=usual).config(model, 0, 1).mask_ratio == usual
    assert Rewriting(preset="published").config(model, 0, 1).mask_ratio == PUBLISHED_RATIO


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_greedily_one_slot_a_step_in_one_block(family, tmp_path):
    """Whatever it does by itself; how its answers end is kept."""
    changes = {} if family == "diffusion_gemma" else {"disp": None}
    model = load_model(write_checkpoint(family, tmp_path / family, [QUESTION], changes), device="cpu")
    stop = model.generation_defaults.get("stop", ())
    expected = decode_config(
        32, 32, sampler="llada", block_length=32, remasking="low_confidence", temperature=0.0, threshold=None,
        schedule=None, cfg_scale=0.0, prefix_cache=False, stop=stop,
    )  # fmt: skip
    assert PurifyConfig.published(model).decode == expected
    assert bool(stop) == (family == "llada_v")


def test_a_model_that_commits_several_slots_at_once_does_not_here():
    builtin = load_model("builtin", device="cpu")
    assert builtin.generation_defaults["threshold"] is not None
    decode = PurifyConfig.published(builtin).decode
    assert (decode.gen_length, decode.steps, decode.block_length, decode.threshold) == (32, 32, 32, None)
