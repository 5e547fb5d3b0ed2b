"""How long sequences become: visual tokens of each sample, by the sizes of its pictures, and text around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from disp.data.dataset import Dataset
from disp.data.sample import IMAGE_PLACEHOLDER, Query, image_size
from disp.models.parts.prompts import messages_of, render
from disp.models.sizes import Sizes, VisualCount

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pictures whose sizes are looked up, and prompts that are tokenized; spread evenly over the data.
LOOKED_AT = 512
# Where there is no tokenizer. English has about four in the vocabularies of these models; a low guess makes the prefix
# rather too long than too short.
CHARACTERS_A_TOKEN = 3
# A role, a start and an end around each message, with their line breaks.
TOKENS_A_MESSAGE = 6


def visual_counts(dataset: Dataset, sizes: Sizes) -> dict[str, VisualCount]:
    """Visual tokens of each sample; of those not looked at, the most of any sample with as many images."""
    samples = dataset.samples
    step = max(1, len(samples) // LOOKED_AT)
    found: dict[str, VisualCount] = {}
    most: dict[int, VisualCount] = {0: VisualCount(0, 0, 0)}
    for sample in samples[::step]:
        count = sizes.visual_count([image_size(source) for source in sample.images])
        found[sample.id] = count
        most[len(sample.images)] = max(count, most.get(len(sample.images), count), key=lambda each: each.visual)
    for sample in samples:
        if sample.id not in found:
            if len(sample.images) not in most:
                most[len(sample.images)] = sizes.visual_count([image_size(source) for source in sample.images])
            found[sample.id] = most[len(sample.images)]
    return found


def tokens_a_picture(dataset: Dataset, counts: Mapping[str, VisualCount]) -> tuple[int, int]:
    """Fewest and most visual tokens of a picture; 0 where there is none."""
    each = [counts[sample.id].visual // len(sample.images) for sample in dataset.samples if sample.images]
    return (min(each), max(each)) if each else (0, 0)


def longest_prefix(
    queries: Sequence[Query], counts: Mapping[str, VisualCount], folder: Path | None, sizes: Sizes
) -> tuple[int, bool]:
    """Positions of the longest prefix among the queries looked at, and whether their text was tokenized."""
    tokenizer = _tokenizer(folder)
    longest = 0
    for query in queries[:: max(1, len(queries) // LOOKED_AT)]:
        count = counts[query.sample_id]
        longest = max(longest, count.visual + count.others + _text_tokens(query, tokenizer, sizes.model.default_system))
    return longest, tokenizer is not None and bool(tokenizer.chat_template)


def _tokenizer(folder: Path | None) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None where there is none that can be read."""
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        # The class by name: AutoTokenizer would want to know the model type first.
        fast = (folder / "tokenizer.json").is_file()
        return (PreTrainedTokenizerFast if fast else AutoTokenizer).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):  # a plan without it is still a plan
        return None


def _text_tokens(query: Query, tokenizer: PreTrainedTokenizerBase | None, default_system: str | None) -> int:
    """Tokens of the chat around the images."""
    messages = messages_of(replace(query, system=query.system or default_system))
    if tokenizer is not None and tokenizer.chat_template:
        text = render(tokenizer, messages)
        return sum(
            len(tokenizer(chunk, add_special_tokens=False)["input_ids"])
            for chunk in text.split(IMAGE_PLACEHOLDER)
            if chunk
        )
    text = "\n".join(message["content"] for message in messages).replace(IMAGE_PLACEHOLDER, "")
    return len(text) // CHARACTERS_A_TOKEN + TOKENS_A_MESSAGE * (len(messages) + 1)
