"""Chat messages become the query that `disp` would ask itself."""

import pytest

from disp.attacks.targets import Refusal
from disp.benchmarks.documents import doc_to_messages, doc_to_text, documents_of
from disp.benchmarks.messages import to_query
from disp.data.sample import Sample, Turn, queries_of
from disp.errors import DispError


def image(picture, number=1):
    return {"type": "image", "url": picture(number)}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def test_images_in_front_stand_on_a_line_of_their_own(picture):
    query = to_query([user(image(picture), text("What is it?"))], "key")
    assert (query.prompt, len(query.images), query.history, query.system) == ("<image>\nWhat is it?", 1, (), None)
    query = to_query([user(image(picture), image(picture, 2), text("Which?"))], "key")
    assert (query.prompt, len(query.images)) == ("<image> <image>\nWhich?", 2)


def test_images_within_a_text_stay_there(picture):
    parts = (text("The graph is"), image(picture), text("and its slope"), image(picture, 2), text(", is?"))
    assert to_query([user(*parts)], "key").prompt == "The graph is <image> and its slope <image>, is?"


def test_a_whole_conversation(picture):
    messages = [
        {"role": "system", "content": "Be brief."},
        user(image(picture), text("Who?")),
        {"role": "assistant", "content": [text("A cat.")]},
        user(text("Where?")),
    ]
    query = to_query(messages, "key", suffix=" /no_think", system="not used")
    assert (query.system, query.prompt) == ("Be brief.", "Where? /no_think")
    assert query.history == (Turn("<image>\nWho?", "A cat."),)
    assert to_query([user(text("Who?"))], "key", system="Be brief.").system == "Be brief."


def test_a_placeholder_in_the_text_of_a_document_means_no_image(tiny_model, picture):
    query = to_query([user(image(picture), text("What does <image> mean?"))], "key")
    assert query.prompt.count("<image>") == len(query.images) == 1
    tiny_model.encode([query])


@pytest.mark.parametrize(
    "messages, told",
    [
        ([user(text("a")), user(text("b"))], "must alternate"),
        ([{"role": "assistant", "content": "a"}], "must alternate"),
        ([user(text("a")), {"role": "assistant", "content": "b"}], "does not end with a question"),
        ([user({"type": "video", "url": "x"})], "video is not supported"),
        ([user({"type": "image", "url": "http://x/y.png"})], "path"),
    ],
)
def test_what_cannot_be_asked_is_named(messages, told):
    with pytest.raises(DispError, match=f"key.*{told}"):
        to_query(messages, "key")


def test_our_own_documents_ask_exactly_what_the_dataset_asks(picture):
    samples = [
        Sample("a", (picture(1),), (Turn("<image>\nWho?", "A cat."), Turn("Where?", "Left.")), system="Be brief."),
        Sample("b", (picture(1), picture(2)), (Turn("<image> and <image>: which?", "One."),)),
        Sample("c", (picture(1),), (Turn("No placeholder?", "Yes <image>."),)),
        Sample("d", (), (Turn("No image?", "No."),)),
        Sample("e", (picture(1), picture(2)), (Turn("<image> Who?", "A cat."), Turn("<image> And here?", "A dog."))),
    ]
    for sample in samples:
        for query, doc in zip(queries_of([sample]), documents_of(sample), strict=True):
            again = to_query(doc_to_messages(doc), query.key)
            prompts = [turn.prompt for turn in query.history] + [query.prompt]
            if sample.id == "c":
                prompts[0] = f"<image>\n{prompts[0]}"
            assert [turn.prompt for turn in again.history] + [again.prompt] == prompts
            assert [turn.response for turn in again.history] == [turn.response for turn in query.history]
            assert again.system == query.system
            assert [one.tobytes() for one in again.images] == [one.tobytes() for one in query.images]
            assert "<image>" not in doc_to_text(doc)


def test_turns_before_the_picture_are_no_part_of_the_attack(picture):
    sample = Sample("s", (picture(0),), (Turn("Hello!", "Hello."), Turn("<image>\nWhat is it?", "A cat.")))
    assert [(doc["turn"], len(doc["images"])) for doc in documents_of(sample)] == [(0, 0), (1, 1)]
    assert [(doc["turn"], len(doc["images"])) for doc in documents_of(sample, Refusal())] == [(1, 1)]
