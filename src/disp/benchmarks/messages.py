"""lmms-eval's chat messages to our queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from disp.data.sample import ImageSource, Query, Turn
from disp.errors import DispError

PLACEHOLDER = "<image>"


def to_query(messages: Sequence[Mapping[str, Any]], key: str, *, suffix: str = "", system: str | None = None) -> Query:
    """The last user message as a query, with everything before it as its history.

    Images stand where the messages have them: in front of a text on a line of their own, otherwise within it, with a
    space between them and a word. A text that brings its own white space keeps it.

    Args:
        messages: ``role`` and ``content``, a text or a list of parts with ``type`` text or image.
        key: what random draws are keyed by.
        suffix: appended to the question, such as LLaDA-V's `` /no_think``.
        system: the system message, if the messages hold none.

    Raises:
        DispError: the messages do not alternate, do not end with a question, or hold something but text and images.
    """
    images: list[ImageSource] = []
    turns: list[Turn] = []
    asked: str | None = None
    for message in messages:
        role, text = message["role"], _text(message["content"], images, message["role"], key)
        if role == "system":
            system = text
        elif role == "user" and asked is None:
            asked = text
        elif role == "assistant" and asked is not None:
            turns.append(Turn(asked, text))
            asked = None
        else:
            raise DispError(
                f"{key}: a message of {role!r} where another was expected; user and assistant must alternate"
            )
    if asked is None:
        raise DispError(f"{key}: the conversation does not end with a question")
    return Query(key, 0, tuple(images), tuple(turns), asked + suffix, system=system)


def _text(content: Any, images: list[ImageSource], role: str, key: str) -> str:
    """A message as one text; its images are added to ``images``."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    text, after_image, only_images = "", False, True
    for part in parts:
        if part["type"] == "image":
            images.append(_image(part.get("url"), key))
            text += " " * bool(text and not text[-1].isspace()) + PLACEHOLDER
            after_image = True
        elif part["type"] == "text":
            # A placeholder in the text of a document means no image.
            piece = part["text"].replace(PLACEHOLDER, "< image>") if role == "user" else part["text"]
            if after_image and only_images:
                text += "\n" * (not piece[:1].isspace())
            elif after_image:
                text += " " * piece[:1].isalnum()
            text += piece
            after_image, only_images = False, False
        else:
            raise DispError(f"{key}: {part['type']} is not supported; choose a task with images and text only")
    return text


def _image(source: Any, key: str) -> ImageSource:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str | Path) and "://" not in str(source):
        return Path(source)
    raise DispError(f"{key}: an image must be a picture or the path of one, got {type(source).__name__}")
