"""DiffusionGemma's chat: Gemma's turns, with pictures as parts of a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from disp.data.sample import IMAGE_PLACEHOLDER, Query
from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig
from disp.models.parts.prompts import interleave, messages_of, name_all_images, render

# For checkpoints without a template of their own; the published one agrees with it on text and pictures.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '\n\n<|image|>\n\n' }}{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def prompt_ids(
    query: Query,
    images: Sequence[Sequence[int]],
    config: DiffusionGemmaMDLMConfig,
    tokenizer: PreTrainedTokenizerBase,
    plain: Callable[[str], str],
) -> list[int]:
    """Token ids of a query.

    Args:
        query: the query.
        images: what stands for the visual tokens of each of its images.
        config: has the ids of what stands around them.
        tokenizer: its own template, if it has one, writes the chat.
        plain: takes control tokens out of a text from data.

    Raises:
        DispError: there are more placeholders than images, or the template does not write each image once.
    """
    messages = messages_of(query)
    name_all_images(messages, query, "\n")
    conversation: Any = [
        {"role": message["role"], "content": _content(message["content"], message["role"] == "user", plain)}
        for message in messages
    ]
    rendered = render(tokenizer, conversation, CHAT_TEMPLATE)
    image_token = str(tokenizer.convert_ids_to_tokens(config.image_token_id))
    chunks = rendered.split(image_token)
    return interleave(chunks, [[config.boi_token_id, *ids, config.eoi_token_id] for ids in images], tokenizer)


def _content(text: str, may_hold_images: bool, plain: Callable[[str], str]) -> str | list[dict[str, str]]:
    """A message as the template wants it: a text, or texts and pictures in order."""
    if not may_hold_images or IMAGE_PLACEHOLDER not in text:
        return plain(text)
    parts: list[dict[str, str]] = []
    for index, chunk in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if chunk.strip():
            parts.append({"type": "text", "text": plain(chunk)})
    return parts


def control_tokens(
    config: DiffusionGemmaMDLMConfig, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> list[str]:
    """Strings that must not come from data; ``ends`` are the ids that end an answer.

    Gemma's tokenizer has thousands of added tokens, among them blank lines and HTML tags, which are text: only those
    marked special count, and those that `disp` itself relies on.
    """
    ids = {config.boi_token_id, config.eoi_token_id, config.image_token_id, *ends}
    tokens = {str(each) for each in tokenizer.added_tokens_decoder.values() if each.special}
    tokens |= {str(tokenizer.convert_ids_to_tokens(token)) for token in ids} | {"<|turn>"}
    return sorted(tokens - {""})
