"""How many bytes each step needs, from the sizes alone.

What autograd keeps was read off the operations of `disp.models.parts.transformer`: normalisation keeps its input,
attention keeps queries, keys, values and output, the gated layer keeps the gate, its activation and the other factor.
Matrices whose weights are frozen keep nothing. Attention is taken to be a fused kernel, which keeps no probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from disp.models.sizes import LanguageSizes, Sizes

FLOAT32, FLOAT64 = 4, 8
# Adam keeps two moments of each trained weight.
MOMENTS = 2
# bitsandbytes' blocks: a scale in 32 bits for each so many weights of four bits. Its 8-bit weights have one for each
# row, which is next to nothing.
BLOCK_OF_4_BITS = 64

# How many tensors of one shape are in memory at once. Read off the modules, and checked by the profiler in
# tests/planning/test_memory.py.
# As wide as the residual stream, in one layer without gradients: the stream, and what the layer makes of it.
STREAMS = 5
# As wide as all heads together: queries, keys and values, before and after their rotation.
ROTATED = 2
# As wide as the gated layer: the gate's activation, the other factor, and the product of both; in the backward pass
# their gradients.
GATED = 3
# As wide as the vision tower's feed-forward layer: before and after its activation.
FED_FORWARD = 2
# As wide as the language model, for each feature that the projector reads: its hidden layer, before and after the
# activation, and its output.
PROJECTED = 3
# As large as the prefix: the embeddings of its words, and the same with the visual tokens put in.
EMBEDDED = 2
# As large as the logits: probabilities, and of one probe its signs, its product and a copy in work.
PROBED = 4


@dataclass(frozen=True)
class Rows:
    """The shape of one pass.

    Attributes:
        count: B, sequences.
        prefix: P, positions of the longest prefix.
        response: L.
        visual: visual tokens and separators of one sequence.
        tiles: pictures that the tower sees for one sequence.
    """

    count: int
    prefix: int
    response: int
    visual: int
    tiles: int

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.prefix + self.response


@dataclass(frozen=True)
class Memory:
    """Bytes of one step at its peak.

    Attributes:
        weights: the model's weights.
        activations: everything that the pass itself makes: what is kept for the backward pass, and what is in work.
        gradients: of the trained weights, where they are held beside the activations.
        optimiser: the optimiser's moments.
    """

    weights: int
    activations: int
    gradients: int = 0
    optimiser: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.gradients + self.optimiser


def weight_bytes(sizes: Sizes, parameters: int, itemsize: int, bits: int | None = None) -> int:
    """Bytes of the weights.

    Args:
        sizes: the model's sizes.
        parameters: all weights.
        itemsize: bytes of a weight.
        bits: 8 or 4 where the matrices of the language model's layers are quantized.
    """
    if bits is None:
        return parameters * itemsize
    matrices = sizes.weights.matrices
    scales = matrices * FLOAT32 // BLOCK_OF_4_BITS if bits == 4 else 0
    return matrices * bits // 8 + scales + (parameters - matrices) * itemsize


def encoding_bytes(sizes: Sizes, rows: Rows, itemsize: int) -> int:
    """Peak of the vision tower and the projector without gradients, for all pictures of a batch."""
    tower, width, tiles = sizes.tower, sizes.language.width, rows.count * rows.tiles
    layer = tower.patches * (STREAMS * tower.width + FED_FORWARD * tower.hidden)
    project = sizes.projected * (tower.width + PROJECTED * width)
    embeds = rows.count * rows.prefix * width
    return itemsize * (tiles * max(tower.stem, layer, project) + EMBEDDED * embeds)


def decoding_bytes(sizes: Sizes, rows: Rows, itemsize: int, *, cached: bool = False, guided: bool = False) -> int:
    """Peak of a denoising step without gradients, the prefix included.

    Args:
        sizes: the model's sizes.
        rows: the batch.
        itemsize: bytes of an activation.
        cached: whether keys and values of the prefix are kept.
        guided: whether a second pass without the prompt is made (classifier-free guidance).
    """
    language = sizes.language
    tokens, slots = rows.count * rows.length, rows.count * rows.response
    heads = (language.heads + 2 * language.kv_heads) * language.head_dim
    # One layer: the residual stream, and the larger of attention and the gated layer.
    layer = itemsize * tokens * (STREAMS * language.width + max(ROTATED * heads, GATED * language.hidden))
    # The logits, in 32 bits where they were not, and twice in 64 for the confidence.
    logits = slots * language.vocab * (itemsize + (FLOAT32 if itemsize < FLOAT32 else 0) + 2 * FLOAT64)
    logits += slots * language.vocab * FLOAT32 * guided
    prefix = itemsize * rows.count * rows.prefix * language.width * (2 if guided else 1)
    cache = itemsize * rows.count * rows.prefix * language.layers * 2 * language.kv_heads * language.head_dim
    return prefix + max(layer, logits) + cache * cached * (2 if guided else 1)


def saliency_bytes(sizes: Sizes, rows: Rows, itemsize: int) -> int:
    """Peak of Fisher-Jacobian saliency: one graph without weights, and one probe's backward pass at a time."""
    language = sizes.language
    tokens, slots = rows.count * rows.length, rows.count * rows.response
    # The leaf, the direction of the mask embedding, and the sum of squares of one product.
    leaves = rows.count * rows.prefix * language.width * (2 * itemsize + FLOAT32)
    logits = slots * language.vocab * (itemsize + PROBED * FLOAT32)
    return graph_bytes(sizes, rows, itemsize) + leaves + logits + _backward_work(language, tokens, itemsize)


def graph_bytes(sizes: Sizes, rows: Rows, itemsize: int) -> int:
    """What autograd keeps of a forward pass whose weights are frozen, as that of saliency."""
    return sum(_kept(sizes.language, rows, itemsize, trained=False))


def training_memory(
    sizes: Sizes,
    rows: Rows,
    itemsize: int,
    weights: int,
    trained: int,
    *,
    method: str,
    rank: int = 16,
    checkpointing: bool = False,
    accumulation: int = 1,
) -> Memory:
    """Peak of a whole training step.

    Whatever is trained is in 32 bits, and so are its gradients and moments; see `disp.training.train.train`. Gradients
    come up while activations go away, so that the larger of the two counts; where gradients are summed over several
    batches, both.

    Args:
        sizes: the model's sizes.
        rows: the batch, with as many rows as there are responses.
        itemsize: bytes of an activation and of a weight before training.
        weights: bytes of the weights before training.
        trained: trained weights.
        method: "full", "lora" or "projector", see `disp.training.config.TrainConfig`.
        rank: of the adapters.
        checkpointing: whether each layer's activations are computed again in the backward pass.
        accumulation: batches a step.
    """
    language = sizes.language
    rows = replace(rows, count=rows.count * sizes.loss_rows)
    tokens, slots = rows.count * rows.length, rows.count * rows.response
    # 1. What the layers keep, and the part of it that is gone once the last layer is behind.
    layers, last = _kept(language, rows, itemsize, trained=method == "full", rank=rank if method == "lora" else 0)
    work = _backward_work(language, tokens, itemsize)
    # Trained embeddings are in 32 bits, and with them what is added to them layer by layer.
    stream = FLOAT32 if method == "full" else itemsize
    work += (stream - itemsize) * tokens * 2 * language.width
    if method == "lora" and itemsize < FLOAT32:
        work += FLOAT32 * tokens * language.hidden  # the gradient of an adapter's own copy of its input
    if checkpointing:
        work += layers // max(1, language.layers - 1)
        layers = stream * tokens * language.layers * language.width
    # 2. The projector's hidden layer and its activation, the prefix, and the logits with their gradients.
    projector = itemsize * rows.count * rows.tiles * sizes.projected * 2 * language.width
    prefix = stream * rows.count * rows.prefix * language.width
    logits = slots * language.vocab * (2 * FLOAT32 + (2 * itemsize if itemsize < FLOAT32 else FLOAT32))
    activations = layers + projector + prefix + max(last + logits, work)
    # 3. Products of weights in 32 bits are of copies, which autocast keeps; an embedding that is no head has none.
    if itemsize < FLOAT32:
        looked_up = language.vocab * language.width if method == "full" and not sizes.tied else 0
        activations += itemsize * (trained - looked_up)
    # 4. Adapters, and the copy of the projector that is trained beside them, come on top of the weights.
    gradients = trained * FLOAT32
    held = gradients if accumulation > 1 else max(0, gradients + work - activations)
    weights += trained * (FLOAT32 if method == "lora" else FLOAT32 - itemsize)
    return Memory(weights, activations, held, MOMENTS * gradients)


def trained_parameters(sizes: Sizes, method: str, rank: int, train_vision: bool) -> int:
    """How many weights a training method trains; see `disp.training.parameters.select_parameters`."""
    weights = sizes.weights
    language = {"full": weights.language, "lora": rank * weights.ends, "projector": 0}[method]
    return language + weights.projector + (weights.tower if train_vision else 0)


def _kept(language: LanguageSizes, rows: Rows, itemsize: int, *, trained: bool, rank: int = 0) -> tuple[int, int]:
    """Bytes that autograd keeps of all layers but the last, and of that one, mostly for the response's rows."""
    query, key = language.heads * language.head_dim, language.kv_heads * language.head_dim
    # What stands for each position, and what only for those that the layer's output is wanted of. Normalisation is in
    # 32 bits, and keeps one number a position besides; so does attention for each head.
    every = max(itemsize, FLOAT32) * language.width + FLOAT32 + itemsize * 2 * key
    wanted = max(itemsize, FLOAT32) * language.width + FLOAT32 * (1 + language.heads)
    wanted += itemsize * (2 * query + 3 * language.hidden)
    if trained:  # normalisation keeps its output before the weight is applied
        every += FLOAT32 * language.width
        wanted += FLOAT32 * language.width
    if trained or rank:
        # Matrices that are trained, or have adapters, keep their inputs.
        if itemsize < FLOAT32:
            # Each a copy of its own, where they come in 32 bits: to adapters all, to others what was normalised.
            every += itemsize * 2 * language.width
            wanted += itemsize * (3 * language.width + language.hidden + query * bool(rank))
        else:
            every += itemsize * language.width
            wanted += itemsize * (language.width + language.hidden)
        every += itemsize * 2 * rank
        wanted += itemsize * 5 * rank
    tokens, slots = rows.count * rows.length, rows.count * rows.response
    whole = (language.layers - 1) * tokens * (every + wanted)
    last = tokens * every + slots * wanted
    final = slots * max(itemsize, FLOAT32) * (1 + trained) * language.width
    return whole, last + final


def _backward_work(language: LanguageSizes, tokens: int, itemsize: int) -> int:
    """The gradients in work in one layer: three of the gated layer, two of the residual stream."""
    return itemsize * tokens * (GATED * language.hidden + 2 * language.width)
