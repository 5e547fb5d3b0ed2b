"""What rival defences read is read from every published family, or the run says that it cannot be."""

from __future__ import annotations

import pytest
import torch
from models.tiny import FAMILIES, write_checkpoint

from disp.baselines.attention import attention_of
from disp.baselines.gtm import token_scores
from disp.baselines.hidden import response_features
from disp.data.sample import Query
from disp.errors import DispError
from disp.models.loading import load_model

TEXTS = ["What is in the picture?", "A red apple is to the left of a cat."]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load_model(write_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param, TEXTS))


@pytest.fixture(scope="module")
def asked(picture):
    return [
        Query("a", 0, (picture(1, 64),), (), f"<image>\n{TEXTS[0]}"),
        Query("b", 0, (picture(2, 90),), (), f"<image>\n{TEXTS[0]} {TEXTS[1]} {TEXTS[1]}"),
    ]


def test_features_and_slopes_do_not_depend_on_the_batch(model, asked):
    prefix = model.encode(asked)
    features, scores = response_features(model, prefix), token_scores(model, prefix)
    assert features.shape[0] == 2 and features.isfinite().all()
    assert (features[0] - features[1]).norm() > 0
    for row, query in enumerate(asked):
        alone = model.encode([query])
        torch.testing.assert_close(response_features(model, alone)[0], features[row], atol=1e-4, rtol=1e-3)
        own, batched = token_scores(model, alone)[0], scores[row]
        torch.testing.assert_close(own[alone.visual_mask[0]], batched[prefix.visual_mask[row]], atol=1e-4, rtol=1e-2)
        assert (own[alone.visual_mask[0]] > 0).all()


def test_attention_makes_what_the_next_layer_gets(model, asked):
    """The weights that are told, applied to the layer's own values, are what its output projection is given."""
    prefix = model.encode(asked)
    if type(model).__name__ == "DiffusionGemma":
        with pytest.raises(DispError, match="DiffusionGemma does not show its attention weights"):
            attention_of(model, prefix, lambda weights, row: weights)
        return
    layers = [module for module in model.modules() if type(module).__name__ == "Attention"]
    values, outputs = [], []
    handles = [layer.v_proj.register_forward_hook(lambda *a: values.append(a[2])) for layer in layers]
    handles += [layer.o_proj.register_forward_pre_hook(lambda _, a: outputs.append(a[0])) for layer in layers]
    weights = attention_of(model, prefix, lambda weights, row: weights)
    for handle in handles:
        handle.remove()
    slots = model.gen_length
    for index, layer in enumerate(layers):
        value = values[index].unflatten(-1, (layer.kv_heads, layer.head_dim)).transpose(1, 2)
        value = value.repeat_interleave(layer.heads // layer.kv_heads, dim=1)
        expected = (weights[:, index] @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(outputs[index][:, -slots:], expected, atol=1e-4, rtol=1e-3)
