"""Rows that hold a chat: a list of messages, each from somebody and with a text or a list of typed parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from disp.data.formats.row import (
    BadRow,
    Content,
    Fields,
    pictures_in,
    system_under,
    those_in,
    with_pictures,
    without_placeholder,
)
from disp.data.references import Embedded
from disp.data.sample import IMAGE_PLACEHOLDER, Turn
from disp.words import shortened

# What Gemma's and ShareGPT's files call the assistant.
_MODELS = ("model", "chatgpt", "bot")
# Types of parts: OpenAI has others where its newer interface is meant.
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image")
# Where a part holds its picture, and where it is not looked for.
_HELD = ("image", "image_url", "url", "path", "data")
# Where a message may say more than it says in its text.
MORE = (
    *("value", "content", "text", "reasoning_content", "reasoning", "thinking", "thought"),
    *("tool_calls", "function_call", "refusal", "chosen", "rejected"),
)
# Speakers that are the names of fields, where an entry holds a question and its answer.
SPEAKERS = ("user", "human", "assistant", "gpt")
_ADDRESSES = ("http://", "https://")
_ELSEWHERE = ("source", "file", "file_name", "image_path", "uri", "base64", "content")


@dataclass(frozen=True)
class Chat:
    """The names of a chat's fields and speakers; capitals of speakers are not looked at.

    Attributes:
        messages: field of the row that lists the messages.
        who: field of a message that says whose it is.
        what: field of a message with its text.
        users: names of the user; the first is written.
        assistants: names of the assistant; the first is written.
        systems: names of a first message that is the system's.
        system_field: field of the row with the system message, where there is none among the messages.
        pictures: field of the row with the pictures; None for ``image`` or ``images``.
    """

    messages: str = "conversations"
    who: str = "from"
    what: str = "value"
    users: tuple[str, ...] = ("human", "user")
    assistants: tuple[str, ...] = ("gpt", "assistant", *_MODELS)
    systems: tuple[str, ...] = ("system", "developer")
    system_field: str | None = None
    pictures: str | None = None


# ms-swift and LLaMA-Factory take a system message beside the messages, too.
_BESIDE = "system"
CONVERSATIONS = Chat(system_field=_BESIDE)
CONVERSATION_ROLES = Chat(
    "conversations", "role", "content", ("user", "human"), ("assistant", "gpt", *_MODELS), system_field=_BESIDE
)
MESSAGES = replace(CONVERSATION_ROLES, messages="messages")
MESSAGES_FROM = Chat("messages", "from", "value", system_field=_BESIDE)
# Mantis and ms-swift have it in the singular, too. The word has other meanings, so that it must hold messages.
SINGLE = "conversation"
_CHATS = {
    "messages": (MESSAGES, MESSAGES_FROM),
    "conversations": (CONVERSATION_ROLES, CONVERSATIONS),
    SINGLE: (replace(MESSAGES, messages=SINGLE), replace(MESSAGES_FROM, messages=SINGLE)),
}


def chat_of(row: Fields) -> Chat:
    """The names that a row uses, as its first message shows them."""
    there = [name for name in _CHATS if name in row and (name != SINGLE or is_chat(row[name]))]
    name = next((each for each in there if row[each]), there[0] if there else "conversations")
    messages = row.get(name)
    first = messages[0] if isinstance(messages, list) and messages and isinstance(messages[0], dict) else {}
    roles = "from" not in first and ("role" in first or name != "conversations")
    return _CHATS[name][0 if roles else 1]


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def fields_of(row: Fields, chat: Chat) -> tuple[str, ...]:
    """The fields of a row that are read."""
    return those_in(row, chat.messages, chat.system_field, pictures=chat.pictures)


def read_chat(row: Fields, chat: Chat, questions: bool = False) -> Content:
    """What a row with a chat says.

    Raises:
        BadRow: it is no chat of a user and an assistant in turn, or a message says more than is read.
    """
    system, messages = _split(row, chat)
    before = len(row[chat.messages]) - len(messages)
    for index, message in enumerate(row[chat.messages]):
        if more := next((key for key in MORE if key != chat.what and message.get(key)), None):
            raise BadRow(
                f"message {index + 1} has {more!r} beside {chat.what!r}, which is not looked at; take it out of the "
                "message"
            )
    for index, message in enumerate(messages):
        expected = chat.users if index % 2 == 0 else chat.assistants
        if not _is_from(message, chat, expected):
            name = message.get(chat.who)
            shown = repr(shortened(name)) if isinstance(name, str) else shortened(repr(name))
            raise BadRow(
                f"message {before + index + 1} is from {shown}, expected {expected[0]!r}; questions and answers must "
                "follow each other"
            )
    if questions and len(messages) % 2:
        messages = [*messages, {chat.what: ""}]
    if not messages or len(messages) % 2:
        raise BadRow("the conversation does not end with an answer")
    texts, shown_in_text = [], []
    for index, message in enumerate(messages):
        text, inline = text_of(message[chat.what])
        if index % 2:
            without_placeholder(text, before + index + 1)
        texts.append(text)
        shown_in_text += inline
    turns = tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))
    column = pictures_in(row, chat.pictures)
    if twice := next((each for each in column if any(_is_same(each, other) for other in shown_in_text)), None):
        raise BadRow(
            f"has the picture {shortened(str(twice))!r} both in a message and in a field of the row; keep one of them"
        )
    return Content(system, turns, tuple(_merged(column, shown_in_text)))


def write_chat(
    row: Fields, chat: Chat, system: str | None, turns: Sequence[Turn], pictures: list[Any] | None
) -> dict[str, Any]:
    """The row with other content; messages whose text is unchanged stay as they are."""
    new = dict(row)
    texts = [text for turn in turns for text in (turn.prompt, turn.response)]
    old = row.get(chat.messages) or []
    head = old[:1] if old and _is_from(old[0], chat, chat.systems) else []
    body = old[len(head) :] or [{chat.who: chat.users[0]}, {chat.who: chat.assistants[0]}]
    if len(body) == 1:
        body = [*body, {chat.who: chat.assistants[0]}]
    body = [*body, *({chat.who: body[index % 2][chat.who]} for index in range(len(body), len(texts)))]
    if pictures is not None:
        body = _with_inline(new, chat, body, texts, pictures)
    first: list[Any] = []
    before = system_under(row, chat.system_field)
    beside = chat.system_field if chat.system_field in row else None
    if beside and before is not None and system is None:
        del new[beside]
    elif beside and system is not None and before != system and (before is not None or not head):
        new[beside] = system
    if system is not None and (head or not beside):
        message = head[0] if head else {chat.who: chat.systems[0]}
        first = [{**message, chat.what: _content(message.get(chat.what), system)}]
    new[chat.messages] = [
        *first,
        *(
            {**message, chat.what: _content(message.get(chat.what), text)}
            for message, text in zip(body, texts, strict=False)
        ),
    ]
    return new


def text_of(content: Any) -> tuple[str, list[Any]]:
    """The text of a message, and for each of its placeholders the picture that it holds itself, or None.

    Raises:
        BadRow: it holds something else than text and pictures.
    """
    if isinstance(content, str):
        return content, [None] * content.count(IMAGE_PLACEHOLDER)
    texts, pictures = [], []
    for part in content:
        kind = _kind(part)
        text = _words(part)
        if kind in _TEXTS and text is not None:
            texts.append(text)
            pictures += [None] * text.count(IMAGE_PLACEHOLDER)
        elif kind in _IMAGES:
            if text:
                raise BadRow("a part of a message holds both a picture and a text; make two parts of it")
            texts.append(IMAGE_PLACEHOLDER)
            pictures.append(_inline(part))
        elif kind in _TEXTS:
            raise BadRow(f"a part of a message is of type {kind!r}, and has no text under 'text'; put it there")
        else:
            raise BadRow(f"a part of a message is of type {shortened(repr(kind))}; only text and image are understood")
    return "".join(texts), pictures


def _is_from(message: dict[str, Any], chat: Chat, names: Sequence[str]) -> bool:
    name = message.get(chat.who)
    return isinstance(name, str) and name.lower() in map(str.lower, names)


def _kind(part: Any) -> Any:
    """The type of a part; one without is told by what it holds."""
    if not isinstance(part, dict):
        return "text"
    kind = part.get("type")
    return ("image" if any(_holds(part.get(key)) for key in _IMAGES) else "text") if kind is None else kind


def _holds(value: Any) -> bool:
    """Whether there is something; a table has each column in each part, and for a picture a dict of nothing."""
    return any(map(_holds, value.values())) if isinstance(value, dict) else bool(value)


def _words(part: Any) -> str | None:
    """The text of a part; None where it has none that is understood.

    A table writes null for a text that is empty. Where such a part holds anything else, that may be its text.
    """
    if not isinstance(part, dict):
        return part if isinstance(part, str) else None
    text = part.get("text")
    if text is None and "text" in part and not any(_holds(part[key]) for key in part if key != "type"):
        return ""
    return text if isinstance(text, str) else None


def _inline(part: dict[str, Any]) -> Any:
    """The picture that a typed part holds itself, or None."""
    held = _held(part)
    for key, value in held.items():
        # `Embedded` where the row's own bytes have been taken out of it.
        if not isinstance(value, str | bytes | dict | Embedded):
            raise BadRow(f"a part of type 'image' holds {type(value).__name__} under {key!r}; give a file name")
    first = next(iter(held), None)
    # An address on the network beside a picture says where it comes from.
    if second := next((key for key in held if key != first and not str(held[key])[:8].startswith(_ADDRESSES)), None):
        raise BadRow(f"a part of a message holds a picture under {first!r} and one under {second!r}; keep one of them")
    if first is not None:
        return held[first]
    if other := next((key for key in _ELSEWHERE if part.get(key)), None):
        raise BadRow(f"a part of type 'image' has its picture under {other!r}; put the file name under 'image'")
    return None


def _held(part: dict[str, Any]) -> dict[str, Any]:
    """What a part holds where a picture is looked for; the first is its picture."""
    found = {key: part.get(key) for key in _HELD}
    if isinstance(link := found["image_url"], dict):
        found["image_url"] = link.get("url")
    return {key: value for key, value in found.items() if _holds(value)}


def _split(row: Fields, chat: Chat) -> tuple[str | None, list[Any]]:
    """The system message and the others."""
    messages = row.get(chat.messages)
    if not isinstance(messages, list) or not messages:
        kind = "text" if isinstance(messages, str) else type(messages).__name__
        found = f": {chat.messages} holds {kind}, and must be a list of messages" if messages else ""
        if isinstance(messages, str) and messages.lstrip()[:1] in ("[", "{"):
            found += "; it looks like JSON: write what the text holds, as json.loads makes it, in place of the text"
        raise BadRow(f"no conversations{found}")
    for message in messages:
        if isinstance(message, dict) and (both := [key for key in SPEAKERS if message.get(key)])[1:]:
            raise BadRow(
                f"an entry of {chat.messages} holds what is said under {both[0]!r} and under {both[1]!r}; make two "
                f"messages of it, with {chat.who!r} and {chat.what!r}, or call the list 'texts', with 'user' and "
                "'assistant'"
            )
        if not isinstance(message, dict) or not isinstance(message.get(chat.what), str | list):
            raise BadRow(f"every message of {chat.messages} needs {chat.who!r} and text in {chat.what!r}")
    beside = system_under(row, chat.system_field)
    if not _is_from(messages[0], chat, chat.systems):
        return beside, messages
    system, inline = text_of(messages[0][chat.what])
    if inline:
        raise BadRow("the system message holds a picture; models here see pictures in questions only")
    if beside is not None and beside != system:
        raise BadRow(
            f"has a system message in {chat.messages} and another one in {chat.system_field}; keep one of them"
        )
    return system, messages[1:]


def _is_same(one: Any, other: Any) -> bool:
    """Whether two say the same of a picture; names may begin at different folders."""
    if isinstance(one, str) and isinstance(other, str):
        short, long = sorted((one.replace("\\", "/"), other.replace("\\", "/")), key=len)
        return long == short or long.endswith(f"/{short}")
    return other is not None and bool(one == other)


def _merged(column: list[Any], shown_in_text: Sequence[Any]) -> Iterator[Any]:
    """The pictures in the order of their placeholders: those in the text, and from the column those that are not."""
    rest = iter(column)
    for picture in shown_in_text:
        if picture is not None:
            yield picture
        elif (following := next(rest, None)) is not None:
            yield following
    yield from rest


def _with_inline(
    row: dict[str, Any], chat: Chat, body: list[Any], texts: Sequence[str], pictures: list[Any]
) -> list[Any]:
    """The messages with their own pictures replaced; the others go to the row's field."""
    kept = [text_of(message[chat.what]) if chat.what in message else ("", []) for message in body]
    before = [picture for _, inline in kept for picture in inline]
    whole = len(before) <= len(pictures) and all(
        text == old for text, (old, _), index in zip(texts, kept, range(len(texts)), strict=False) if not index % 2
    )
    if not any(picture is not None for picture in before) or not whole:
        with_pictures(row, pictures, chat.pictures)
        return [_bare(message, chat) for message in body] if any(before) else body
    column = [new for new, old in zip(pictures, before, strict=False) if old is None] + pictures[len(before) :]
    with_pictures(row, column, chat.pictures)
    inline = iter(pictures)
    return [
        {**message, chat.what: [_part(part, inline) for part in message[chat.what]]}
        if isinstance(message.get(chat.what), list)
        else _passed(message, chat, inline)
        for message in body
    ]


def _passed(message: dict[str, Any], chat: Chat, pictures: Iterator[Any]) -> dict[str, Any]:
    for _ in range(str(message.get(chat.what, "")).count(IMAGE_PLACEHOLDER)):
        next(pictures)
    return message


def _part(part: Any, pictures: Iterator[Any]) -> Any:
    if _kind(part) in _TEXTS:
        for _ in range((_words(part) or "").count(IMAGE_PLACEHOLDER)):
            next(pictures)
        return part
    new = next(pictures)
    for key in _held(part):
        link = key == "image_url" and isinstance(part[key], dict)
        return {**part, key: {**part[key], "url": new} if link else new}
    return part


def _bare(message: dict[str, Any], chat: Chat) -> dict[str, Any]:
    """The message without pictures of its own, for a row whose pictures have changed in number."""
    content = message.get(chat.what)
    if not isinstance(content, list):
        return message
    return {
        **message,
        chat.what: [{"type": "image"} if _kind(part) not in _TEXTS else part for part in content],
    }


def _content(old: Any, text: str) -> Any:
    """The content of a message with this text; a list of parts stays a list."""
    if not isinstance(old, list):
        return text
    if text_of(old)[0] == text:
        return old
    words = [part for part in old if _kind(part) in _TEXTS]
    pictures = iter([part for part in old if part not in words])
    word = words[0] if words and isinstance(words[0], dict) else {"type": "text"}
    parts: list[Any] = []
    for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append(next(pictures, {"type": "image"}))
        if piece or text == "":
            parts.append({**word, "text": piece})
    return parts
