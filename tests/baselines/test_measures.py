"""What is read from a model: hidden states, attention and likelihood, against independent computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from disp.baselines import bye, likelihood
from disp.baselines.attention import attention_of
from disp.baselines.gtm import token_scores
from disp.baselines.hidden import response_features
from disp.errors import DispError
from disp.suspicion.support import fixed_masks


def llama_of(model) -> LlamaModel:
    """The library's Llama with the model's weights."""
    config = model.config
    twin = LlamaModel(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads, rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    own = model.model.state_dict()
    twin.load_state_dict({name: own[name] for name in twin.state_dict()})
    return twin


@torch.no_grad()
def of_one_row(model, query, *, heads=False):
    """Llama's last hidden states and attention weights of one query with every response slot masked."""
    prefix = model.encode([query])
    response = torch.full((1, model.gen_length), model.mask_token_id)
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    everywhere = torch.zeros(1, 1, embeds.shape[1], embeds.shape[1])
    found = llama_of(model)(inputs_embeds=embeds, attention_mask=everywhere, output_attentions=True)
    return prefix, found.last_hidden_state[0], [each[0] for each in found.attentions]


@pytest.fixture(scope="module", params=[2, 1], ids=["own keys", "shared keys"])
def model(request, make_model):
    return make_model(num_key_value_heads=request.param)


def test_hidden_states_are_llamas(model, queries):
    ours = response_features(model, model.encode(queries))
    for row, query in enumerate(queries):
        _, hidden, _ = of_one_row(model, query)
        torch.testing.assert_close(ours[row], hidden[-model.gen_length :].mean(0), atol=1e-4, rtol=1e-4)


def test_attention_weights_are_llamas(model, queries):
    """In a batch with padding on the left."""
    prefix = model.encode(queries)
    ours = attention_of(model, prefix, lambda weights, row: weights)
    assert ours.shape[:2] == (len(queries), model.config.num_hidden_layers)
    for row, query in enumerate(queries):
        alone, _, weights = of_one_row(model, query)
        padding = prefix.embeds.shape[1] - alone.embeds.shape[1]
        assert (ours[row, ..., :padding] == 0).all()
        for layer, each in enumerate(weights):
            expected = each[:, -model.gen_length :]
            torch.testing.assert_close(ours[row, layer, ..., padding:], expected, atol=1e-5, rtol=1e-4)


def test_the_prompt_looks_too_where_it_is_asked_to(model, queries):
    prefix = model.encode(queries)
    behind = [3, 0, 5, 1]
    found = [attention_of(model, prefix, lambda weights, row: torch.tensor(float(weights.shape[1])), behind)]
    assert (found[0] == torch.tensor(behind)[:, None] + model.gen_length).all()
    means = attention_of(model, prefix, lambda weights, row: weights.mean((0, 1)), behind)
    for row, query in enumerate(queries):
        alone, _, weights = of_one_row(model, query)
        padding = prefix.embeds.shape[1] - alone.embeds.shape[1]
        for layer, each in enumerate(weights):
            expected = each[:, -model.gen_length - behind[row] :].mean((0, 1))
            torch.testing.assert_close(means[row, layer, padding:], expected, atol=1e-5, rtol=1e-4)


def test_entropy_with_loops(model, queries):
    batch = [query for query in queries if query.images]
    ours = bye.measure(model, model.encode(batch), batch, bye.ByeConfig(), 0)
    for row, query in enumerate(batch):
        prefix, _, layers = of_one_row(model, query)
        for layer, weights in enumerate(layers):
            seen = [
                float(weights[:, -model.gen_length :, position].mean())
                for position in prefix.visual_mask[0].nonzero()[:, 0].tolist()
            ]
            shares = [each / sum(seen) for each in seen]
            entropy = -sum(share * math.log(share) for share in shares) / math.log(len(shares))
            assert float(ours[row, layer]) == pytest.approx(entropy, abs=1e-4)


def test_token_scores_are_slopes(tiny_model64, queries):
    """The gradient of the hidden state's length, by central differences along random directions."""
    model = tiny_model64
    prefix = model.encode(queries[:1])
    scores = token_scores(model, prefix)
    assert (scores[~prefix.visual_mask] == 0).all()
    position = int(prefix.visual_mask[0].nonzero()[3, 0])

    def length(embeds):
        return float(response_features(model, replace(prefix, embeds=embeds)).norm())

    gradient = []
    for entry in range(prefix.embeds.shape[-1]):
        step = torch.zeros_like(prefix.embeds)
        step[0, position, entry] = 1e-2
        gradient.append((length(prefix.embeds + step) - length(prefix.embeds - step)) / 2e-2)
    assert float(np.linalg.norm(gradient)) == pytest.approx(float(scores[0, position]), rel=0.02)


def test_likelihood_with_loops(tiny_model, queries):
    model = tiny_model
    batch = [replace(query, response=text) for query, text in zip(queries, ["a", "cat", "", "a b"], strict=True)]
    config = likelihood.LikelihoodConfig(masks=4)
    ours = likelihood.measure(model, model.encode(batch), batch, config, 3)
    masks = fixed_masks(model.gen_length, 4, 3)
    for row, query in enumerate(batch):
        prefix = model.encode([query])
        ids = model.encode_responses([query.response], model.gen_length)
        tokens = len(model.tokenizer(query.response, add_special_tokens=False)["input_ids"])
        answer = min(tokens + 1, model.gen_length)  # with its end of turn
        for index, mask in enumerate(masks):
            noised = torch.where(mask, model.mask_token_id, ids)
            with torch.no_grad():
                log_p = model.denoise(prefix, noised)[0].log_softmax(-1)
            total = -sum(float(log_p[slot, ids[0, slot]]) for slot in range(answer) if mask[slot])
            assert float(ours[row, index]) == pytest.approx(total / ((index + 1) / 4 * answer), rel=1e-3, abs=1e-3)


def test_a_model_without_what_is_needed_is_an_error(queries):
    from planted import planted_model, wall

    from disp.data.sample import Query

    model = planted_model()
    prefix = model.encode([Query("a", 0, (wall("red"),), (), "<image>\nWhat is in the picture?")])
    with pytest.raises(DispError, match="Planted does not pass its hidden states through lm_head"):
        response_features(model, prefix)
    with pytest.raises(DispError, match="Planted runs 0 of its 1 attention layers"):
        attention_of(model, prefix, lambda weights, row: weights)
    del model.model.layers
    with pytest.raises(DispError, match="Planted does not show its attention weights"):
        attention_of(model, prefix, lambda weights, row: weights)
    model.lm_head = None
    with pytest.raises(DispError, match="Planted has no output head called lm_head"):
        token_scores(model, prefix)
