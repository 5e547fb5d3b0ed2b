"""Configs of published sizes, and measured peaks and passes to compare a plan with."""

from collections import Counter
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile

LLADA_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 126464, "model_type": "llava_llada",
    "image_grid_pinpoints": "(1x1),...,(6x6)", "image_aspect_ratio": "anyres_max_4", "mm_vision_tower": "siglip2",
}  # fmt: skip
LAVIDA = {
    "d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464,
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]], "model_type": "llava_llada",
    "mm_vision_tower": "siglip", "image_aspect_ratio": "anyres", "mm_spatial_pool_mode": "bilinear",
}  # fmt: skip
MMADA = {"model_type": "mmada", **{name: LAVIDA[name] for name in ("d_model", "n_layers", "n_heads")}} | {
    "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 134656,
}  # fmt: skip
DREAM = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
LAVIDA_DREAM = {**DREAM, "model_type": "llava_dream", "mm_vision_tower": "siglip"}
DIMPLE = {**DREAM, "model_type": "dimple"}
GEMMA = {
    "text_config": {
        "num_hidden_layers": 30, "hidden_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "num_global_key_value_heads": 2, "intermediate_size": 2112, "moe_intermediate_size": 704,
        "num_experts": 128, "top_k_experts": 8, "vocab_size": 262144,
    },
    "vision_config": {
        "model_type": "gemma4_vision", "num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304,
        "num_attention_heads": 16,
    },
}  # fmt: skip


def peak(run) -> int:
    """Bytes that the allocator handed out beyond what was there before, at the highest point of ``run``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    events = [(e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        highest = max(highest, now)
    return highest


def close(planned: int, measured: int):
    assert 0.75 * measured <= planned <= 1.25 * measured, f"planned {planned:,}, measured {measured:,}"


@contextmanager
def counting(model):
    """Counts calls of ``denoise``, their rows, and backward passes through their logits."""
    counts = Counter()
    plain = model.denoise

    def denoise(prefix, response, *rest, **named):
        logits = plain(prefix, response, *rest, **named)
        counts["forward"] += 1
        counts["rows"] += len(response)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: counts.update(backward=1))
        return logits

    model.denoise = denoise
    try:
        yield counts
    finally:
        del model.denoise


def check(passes, counts):
    planned = {"forward": passes.forward, "backward": passes.backward, "rows": passes.rows}
    if passes.at_most:
        assert all(counts[name] <= number for name, number in planned.items()), (counts, planned)
    else:
        assert planned == {name: counts[name] for name in planned}
