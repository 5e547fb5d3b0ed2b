"""Planned memory against the allocator's."""

from functools import partial

import pytest
import torch
from models.tiny import write_checkpoint
from parity_folder import PARITY
from references.planning import LLADA_8B, close, peak
from torch.utils.checkpoint import checkpoint

from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.models.builtin.model import BuiltinModel
from disp.models.interface import Prefix
from disp.models.loading import load_model
from disp.planning.checkpoints import read_config, sizes_of
from disp.planning.memory import (
    Rows,
    decoding_bytes,
    encoding_bytes,
    graph_bytes,
    saliency_bytes,
    trained_parameters,
    training_memory,
    weight_bytes,
)
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.saliency import first_step, saliency
from disp.training.config import TrainConfig
from disp.training.parameters import select_parameters, trained_in_float32


@pytest.mark.parametrize("name", ["built-in", "larger"])
def test_peak_of_encoding_saliency_and_decoding(measured_models, asked, name):
    model = measured_models[name]
    sizes = sizes_of(model.config.to_dict())
    prefix = model.encode(asked)
    rows = Rows(len(asked), prefix.embeds.shape[1], 32, 144, 1)
    keys = [query.key for query in asked]
    close(encoding_bytes(sizes, rows, 4), peak(lambda: model.encode(asked)))
    used = peak(lambda: saliency(model, prefix, keys, SaliencyConfig(probes=3)))
    close(saliency_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)
    used = peak(lambda: decode(model, prefix, decode_config(32, 4)))
    close(decoding_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)


def test_peak_of_an_image_tokenizer(tmp_path):
    """MMaDA's, in whose first stage the most is held."""
    folder = write_checkpoint("mmada", tmp_path / "model", ["A cat."], {"num_vq_tokens": 1024})
    model = load_model(folder, device="cpu")
    pixels = torch.zeros(1, 3, model.config.image_size, model.config.image_size, dtype=torch.uint8)
    stem = sizes_of(read_config(folder), folder).tower.stem
    close(stem * 4, peak(lambda: model.codes(pixels)))


TRAININGS = [
    *(("built-in", method, False, torch.float32) for method in ("full", "lora", "projector")),
    *(("larger", method, True, torch.float32) for method in ("full", "lora")), ("larger", "full", False, torch.float32),
    *(("built-in", method, False, torch.bfloat16) for method in ("full", "lora", "projector")),
    # Half a minute each where the processor has no instructions for it.
    *(pytest.param("larger", way, True, torch.bfloat16, marks=pytest.mark.slow) for way in ("full", "lora")),
]  # fmt: skip


@pytest.mark.parametrize("name, method, checkpointing, dtype", TRAININGS)
def test_peak_of_a_training_step(measured_models, asked, name, method, checkpointing, dtype):
    source = measured_models[name]
    model = BuiltinModel(source.config).to(dtype)
    model.tokenizer = source.tokenizer
    sizes = sizes_of(model.config.to_dict())
    if checkpointing:
        model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
    inputs = model.prepare(asked, model.image_features([query.images[0] for query in asked]))
    inputs |= {"clean": model.encode_responses(["A red apple."] * len(asked), 32)}
    inputs |= {"ratio": torch.full((len(asked),), 0.5), "uniforms": torch.rand(len(asked), 32)}
    rows = Rows(len(asked), inputs["token_ids"].shape[1], 32, 144, 1)
    module = select_parameters(model, TrainConfig(method=method))
    module.train()
    chosen = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trained = sum(parameter.numel() for parameter in chosen)
    assert trained == trained_parameters(sizes, method, 16, False)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            loss = module(**inputs)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    plan = training_memory(
        sizes, rows, dtype.itemsize, sizes.weights.total * dtype.itemsize, trained, method=method,
        checkpointing=checkpointing,
    )  # fmt: skip
    with trained_in_float32(module):
        optimiser = torch.optim.AdamW(chosen, fused=True)
        step()  # the moments are made in the first one
        close(plan.activations + plan.gradients, peak(step))
        assert plan.weights == sum(value.nbytes for value in module.parameters())
    assert plan.optimiser == sum(v.nbytes for state in optimiser.state.values() for v in state.values() if v.dim())


def test_what_saliency_keeps_is_what_autograd_saves(builtin, asked):
    prefix = builtin.encode(asked)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in builtin.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        first_step(builtin, prefix, 32)
    rows = Rows(len(asked), prefix.embeds.shape[1], 32, 144, 1)
    kept = graph_bytes(sizes_of(builtin.config.to_dict()), rows, 4)
    assert kept == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=0.01)


def test_gradients_are_held_beside_activations_where_batches_are_summed(builtin):
    sizes = sizes_of(builtin.config.to_dict())
    plans = [
        training_memory(sizes, Rows(4, 150, 32, 144, 1), 4, 0, 1000, method="full", accumulation=n) for n in (1, 2)
    ]
    assert [plan.gradients for plan in plans] == [0, 4000]


def test_quantized_weights_take_less():
    sizes = sizes_of(LLADA_8B)
    whole = weight_bytes(sizes, sizes.weights.total, 2)
    assert whole == 2 * sizes.weights.total
    assert weight_bytes(sizes, sizes.weights.total, 2, bits=8) / whole == pytest.approx(0.59, abs=0.02)
    assert weight_bytes(sizes, sizes.weights.total, 2, bits=4) / whole == pytest.approx(0.41, abs=0.02)


@pytest.mark.parametrize("family", ["llada_v", "lavida_llada", "lavida_dream", "mmada", "dimple"])
def test_peaks_of_published_families(family):
    """On the tiny random models of the parity data, with a long prefix, so that their small widths do not hide it."""
    if not (PARITY / family).is_dir():
        pytest.skip(f"no parity data in {PARITY}; set DISP_PARITY_DIR")
    model = load_model(PARITY / family, dtype=torch.float32, device="cpu")
    model.eval()
    model.mask_token_id, model.banned_token_ids = 5, ()  # their own ids are beyond the shrunk vocabulary
    sizes = sizes_of(read_config(PARITY / family), PARITY / family)
    length, slots = 1500, 64
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, 10:1400] = True
    positions = torch.arange(length)[None, :, None].expand(1, length, 3).contiguous()
    prefix = Prefix(
        torch.randn(1, length, sizes.language.width), torch.ones_like(visual), visual,
        torch.full((1, length, 4), -1), {"positions": positions} if family == "dimple" else {},
    )  # fmt: skip
    rows = Rows(1, length, slots, 1390, 1)
    used = peak(lambda: saliency(model, prefix, ["a"], SaliencyConfig(probes=3), gen_length=slots))
    close(saliency_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)
    used = peak(lambda: decode(model, prefix, decode_config(slots, 2)))
    close(decoding_bytes(sizes, rows, 4), used + prefix.embeds.nbytes)


def test_saliency_of_the_published_size_is_what_its_layers_keep():
    # Attention keeps 4 values of width d a position, the gated layer 9, and two norms one each in 32 bits.
    sizes = sizes_of(LLADA_8B)
    planned = saliency_bytes(sizes, Rows(1, 2000, 128, 1900, 5), 2)
    assert planned == pytest.approx(17 * 2 * 4096 * 32 * 2128, rel=0.1)
