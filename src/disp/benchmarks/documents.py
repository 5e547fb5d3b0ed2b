"""Our own tasks: what their documents hold, how they are asked, and how answers are scored.

A document is one assistant turn of a dataset that `disp scenes` or `disp poison` wrote. Scores are those of
`disp.evaluation`, so that lmms-eval and `disp evaluate` agree to the last digit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from disp.attacks.poison import is_changed
from disp.attacks.targets import Target, target_from_dict, target_to_dict
from disp.benchmarks.messages import PLACEHOLDER
from disp.data.sample import Query, Sample, open_image, queries_of
from disp.evaluation.quality import answer_quality


def documents_of(sample: Sample, target: Target | None = None) -> list[dict[str, Any]]:
    """One document for each assistant turn of a sample; with a target only where it applies to an answer to a picture.

    Pictures are held as PNG, so that triggers reach the model unchanged.
    """
    fields = dict(sample.metadata)
    pictures = [{"bytes": _png(open_image(source)), "path": None} for source in sample.images]
    return [
        {
            "key": query.key,
            "turn": query.turn,
            "images": pictures[: len(query.images)],
            "messages": json.dumps(_messages(query), ensure_ascii=False),
            "reference": query.response,
            "metadata": json.dumps(fields, ensure_ascii=False),
            "target": json.dumps(target_to_dict(target)) if target else None,
        }
        for query in queries_of([sample])
        if target is None or is_changed(query, target)
    ]


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The pictures."""
    return [Image.open(io.BytesIO(picture["bytes"])).convert("RGB") for picture in doc["images"] or ()]


def doc_to_messages(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> list[dict[str, Any]]:
    """The conversation up to the question, with each picture where its placeholder is."""
    pictures = iter(doc_to_visual(doc))
    messages = []
    for role, text in json.loads(doc["messages"]):
        content: list[dict[str, Any]] = []
        for number, chunk in enumerate(text.split(PLACEHOLDER) if role == "user" else [text]):
            if number:
                content.append({"type": "image", "url": next(pictures)})
            if chunk:
                content.append({"type": "text", "text": chunk})
        messages.append({"role": role, "content": content})
    return messages


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question alone, for models that take no messages."""
    return json.loads(doc["messages"])[-1][1].replace(PLACEHOLDER, "").strip()


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The right answer."""
    return doc["reference"]


def clean_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Quality of the answer from 0 to 1, as `disp.evaluation.quality` has it."""
    return {"clean_quality": answer_quality(results[0], doc["reference"], json.loads(doc["metadata"]), doc["turn"])}


def attack_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is the attacker's target: exactly, in any form, and by the count of DiSP's authors."""
    target = target_from_dict(json.loads(doc["target"]))
    return {
        "asr": float(target.exact(results[0], doc["reference"])),
        "asr_keyword": float(target.keyword(results[0], doc["reference"])),
        "asr_substring": float(target.substring(results[0])),
    }


def _messages(query: Query) -> list[list[str]]:
    """Role and text of each message; images without a placeholder stand in front of the first question."""
    texts = [["system", query.system]] if query.system else []
    for turn in query.history:
        texts += [["user", turn.prompt], ["assistant", turn.response]]
    texts.append(["user", query.prompt])
    first = next(text for text in texts if text[0] == "user")
    missing = len(query.images) - sum(text.count(PLACEHOLDER) for role, text in texts if role == "user")
    first[1] = f"{PLACEHOLDER}\n" * missing + first[1]
    return texts


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
