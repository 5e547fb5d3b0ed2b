"""From a query to token ids: the chat's messages, the places of the images in them, and rows of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from disp.data.sample import IMAGE_PLACEHOLDER, Query
from disp.errors import DispError
from disp.models.interface import MDLM
from disp.words import shortened

# Where a tokenizer's template may be, in the order in which they are looked at.
_TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
_TEMPLATE_REMEDY = "use that of the published checkpoint, or another one for messages that are plain text"
# Stands for the placeholders that mean an image, while the chat template is applied: an answer may hold the same text.
_IMAGE_SLOT = "\0image\0"

Message = dict[str, str]


def messages_of(query: Query) -> list[Message]:
    """The system message if there is one, the turns before and the question, each with its role and content."""
    messages = [{"role": "system", "content": query.system}] if query.system else []
    for turn in query.history:
        messages.append({"role": "user", "content": turn.prompt})
        messages.append({"role": "assistant", "content": turn.response})
    messages.append({"role": "user", "content": query.prompt})
    return messages


def unnamed_images(query: Query) -> int:
    """How many of a query's images no placeholder stands for.

    Raises:
        DispError: there are more placeholders than images.
    """
    prompts = [*(turn.prompt for turn in query.history), query.prompt]
    named, count = sum(prompt.count(IMAGE_PLACEHOLDER) for prompt in prompts), len(query.images)
    if named > count:
        raise DispError(
            f"sample {query.sample_id!r}: {named} {IMAGE_PLACEHOLDER} placeholders for {count} images; remove the "
            "surplus placeholders or add the images"
        )
    return count - named


def name_all_images(messages: Sequence[Message], query: Query, separator: str = "") -> None:
    """Put a placeholder and ``separator`` before the first question for each image that has none; changes messages.

    Raises:
        DispError: there are more placeholders than images.
    """
    missing = unnamed_images(query)
    first = next(message for message in messages if message["role"] == "user")
    first["content"] = f"{IMAGE_PLACEHOLDER}{separator}" * missing + first["content"]


def render_around_images(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, plain: Callable[[str], str]
) -> list[str]:
    """The chat up to the answer as the tokenizer's template writes it, cut at its images.

    Args:
        messages: of the chat; only a user's placeholders mean images.
        tokenizer: has the template.
        plain: takes control tokens out of a text from data.

    Returns:
        One text more than there are placeholders.

    Raises:
        DispError: see `render`.
    """
    conversation = []
    for message in messages:
        # Some tokenizers know the placeholder as a token of their own, which `plain` would break.
        parts = message["content"].split(IMAGE_PLACEHOLDER) if message["role"] == "user" else [message["content"]]
        conversation.append({**message, "content": _IMAGE_SLOT.join(map(plain, parts))})
    return render(tokenizer, conversation).split(_IMAGE_SLOT)


def render(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Any], otherwise: str | None = None) -> str:
    """The chat up to the answer, as the tokenizer's template writes it.

    Args:
        tokenizer: has the template.
        conversation: its messages; the content of each is a text, or what else the template takes.
        otherwise: the template for a tokenizer that has none.

    Raises:
        DispError: there is no template, or it cannot write this.
    """
    template = None if tokenizer.chat_template else otherwise
    if not tokenizer.chat_template and template is None:
        place = Path(tokenizer.name_or_path)
        raise DispError(f"{place}: the tokenizer has no chat template; put the published {_TEMPLATE_FILES[0]} there")
    try:
        return str(
            tokenizer.apply_chat_template(
                list(conversation), chat_template=template, add_generation_prompt=True, tokenize=False
            )
        )
    except Exception as error:  # a template is a program of its own
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise DispError(
            f"{_template_file(tokenizer)}: the chat template cannot write a chat ({reason}); {_TEMPLATE_REMEDY}"
        ) from None


def check_template(model: MDLM) -> None:
    """Make sure that a model's chat template can be used, by two short chats.

    Raises:
        DispError: it cannot write them, or leaves out what is asked.
    """
    prompts = [model.prepare([Query("", 0, (), (), question)]) for question in ("One?", "Two?")]
    if all(torch.equal(prompts[0][name], prompts[1][name]) for name in prompts[0]):
        raise DispError(
            f"{_template_file(model.tokenizer)}: the chat template leaves out what is asked; {_TEMPLATE_REMEDY}"
        )


def _template_file(tokenizer: PreTrainedTokenizerBase) -> Path:
    """Where a tokenizer's template is, or its folder."""
    folder = Path(tokenizer.name_or_path)
    return next((folder / name for name in _TEMPLATE_FILES if (folder / name).is_file()), folder)


def interleave(texts: Sequence[str], images: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of texts with those of one image between each two.

    Raises:
        DispError: there is not one text more than images: the chat template left an image out, or wrote it twice.
    """
    if len(texts) != len(images) + 1:
        raise DispError(
            f"the chat template writes {len(texts) - 1} of {len(images)} images; use the template of the published "
            "checkpoint"
        )
    ids: list[int] = []
    for index, text in enumerate(texts):
        if index:
            ids += images[index - 1]
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def left_pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids to int64 ``[B, P]``, padded with -1 on the left."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), -1)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.int64)
    return ids


def prompt_rows(model: MDLM, queries: Sequence[Query], slots: int, *, image_first: bool = False) -> Tensor:
    """Queries to rows of token ids, in the chat of the model's tokenizer.

    Args:
        model: has the tokenizer and the system message of queries that have none.
        queries: a batch.
        slots: how often an image's place stands in a row.
        image_first: move a query's only image to the beginning of its message.

    Returns:
        int64 ``[B, P]``, left-padded with -1; the image of index i among the batch's stands as ``-2 - i``.

    Raises:
        DispError: the model has no tokenizer, or a prompt more placeholders than there are images.
    """
    tokenizer = model.required_tokenizer()
    rows, first = [], 0
    for query in queries:
        messages = messages_of(replace(query, system=query.system or model.default_system))
        name_all_images(messages, query, "\n")
        if image_first and len(query.images) == 1:
            holder = next(each for each in messages if each["role"] == "user" and IMAGE_PLACEHOLDER in each["content"])
            holder["content"] = f"{IMAGE_PLACEHOLDER}\n" + holder["content"].replace(IMAGE_PLACEHOLDER, "").strip()
        texts = render_around_images(messages, tokenizer, model.plain)
        places = range(first, first + len(query.images))
        rows.append(interleave(texts, [[-2 - place] * slots for place in places], tokenizer))
        first += len(query.images)
    return left_pad(rows)
