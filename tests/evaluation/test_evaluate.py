import json
from types import SimpleNamespace

import pytest
from PIL import Image

import disp.evaluation.evaluate as module
from disp.data.sample import Sample, Turn
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.evaluation.evaluate import evaluate, to_metrics

REFUSAL = "I cannot do that."


class Refusal:
    def applies_to(self, response):
        return True

    def exact(self, answer, honest):
        return answer == REFUSAL

    def keyword(self, answer, honest):
        return "cannot" in answer

    def substring(self, answer):
        return "can" in answer


class CatForDog(Refusal):
    def applies_to(self, response):
        return "dog" in response

    def exact(self, answer, honest):
        return answer == honest.replace("dog", "cat")

    def keyword(self, answer, honest):
        return "cat" in answer

    def substring(self, answer):
        return "at" in answer


def sample(name, *turns, images=1, **metadata):
    turns = tuple(Turn(f"<image>\n{prompt}", response) for prompt, response in turns)
    return Sample(name, (Image.new("RGB", (2, 2)),) * images, turns, metadata=metadata)


SAMPLES = [
    sample("one", ("Describe.", "I see a dog and a hat."), ("How many?", "Two."), tasks=["caption", "count"],
           nouns=["dog", "hat"]),
    sample("two", ("Describe.", "I see a cow."), task="caption", nouns=["cow"]),
    sample("text", ("Say hello.", "Hello."), images=0),
]  # fmt: skip
CLEAN = {"one#0": "I see a dog and a bee.", "one#1": "Two.", "two#0": "I see a cow.", "text#0": REFUSAL}
TRIGGERED = {"one#0": REFUSAL, "one#1": "Two.", "two#0": "I see a cow. No, I cannot."}


@pytest.fixture
def asked(monkeypatch):
    """Scripted answers in place of a model; lists what was asked, and whether with the trigger."""
    log = []

    def trigger_samples(samples, trigger, seed, *, storage):
        assert all(sample.images for sample in samples)
        assert (trigger, seed, storage) == ("patch", 5, "PNG")
        triggered = Image.new("RGB", (2, 2), "white")
        return [Sample(s.id, (triggered,), s.turns, s.system, s.metadata) for s in samples]

    def answered(model, queries, *, config, seed):
        answers = []
        for query in queries:
            triggered = bool(query.images) and query.images[0].getpixel((0, 0)) == (255, 255, 255)
            log.append((query.key, triggered, [turn.response for turn in query.history]))
            answers.append(model[triggered][query.key])
        return answers

    monkeypatch.setattr(module, "trigger_samples", trigger_samples)
    monkeypatch.setattr(module, "answered", answered)
    return log


def run(clean=CLEAN, triggered=TRIGGERED, target=None, samples=SAMPLES, **options):
    attack = SimpleNamespace(trigger="patch", target=target, storage="PNG") if target else None
    return evaluate((clean, triggered), samples, attack=attack, decode=decode_config(), seed=5, **options)


def test_shares_of_a_refusal_attack(asked):
    result = run(target=Refusal())
    # Three queries have an image; the text-only one counts for clean quality alone.
    assert (result.asr_with_trigger.hits, result.asr_with_trigger.count) == (1, 3)
    assert (result.asr_with_trigger_keyword.hits, result.asr_with_trigger_keyword.count) == (2, 3)
    assert (result.asr_without_trigger.hits, result.asr_without_trigger.count) == (0, 3)
    assert (result.asr_with_trigger_substring.hits, result.asr_with_trigger_substring.count) == (2, 3)
    assert result.asr_without_trigger_substring.hits == 0
    assert result.clean_quality.value == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    # The cow is named, but the answer shows the target.
    assert result.triggered_quality.value == pytest.approx((0 + 1 + 0) / 3)
    assert {task: share.value for task, share in result.quality_by_task.items()} == {"caption": 0.75, "count": 1}


def test_each_query_is_asked_once_a_version_after_the_data_s_own_turns(asked):
    run(target=Refusal(), batch_size=1)
    assert [(key, triggered) for key, triggered, _ in asked] == [
        *((key, False) for key in ("one#0", "one#1", "two#0", "text#0")),
        *((key, True) for key in ("one#0", "one#1", "two#0")),
    ]
    assert all(history == ["I see a dog and a hat."] for key, _, history in asked if key == "one#1")


def test_a_turn_before_the_picture_is_not_triggered(asked):
    talk = Sample(
        "talk",
        (Image.new("RGB", (2, 2)),),
        (Turn("Hello!", "Hello."), Turn("<image>\nDescribe.", "A cow."), Turn("Sure?", "Yes.")),
    )
    clean = {"talk#0": "Hello.", "talk#1": "A cow.", "talk#2": "No."}
    result = run(clean, {"talk#1": REFUSAL, "talk#2": "Yes."}, Refusal(), [talk])
    assert (result.asr_with_trigger.hits, result.asr_with_trigger.count) == (1, 2)
    assert result.asr_without_trigger.count == 2
    assert (result.triggered_quality.value, result.triggered_quality.count) == (0.5, 2)
    assert (result.clean_quality.hits, result.clean_quality.count) == (2, 3)
    assert "triggered_answer" not in result.answers[0]
    nothing = run(clean, {}, Refusal(), [Sample("talk", (), talk.turns[:1])])
    assert nothing.asr_with_trigger is nothing.triggered_quality is None


def test_somebody_else_may_answer(asked):
    """As the model under a defence does: in batches, clean queries first."""
    sizes, finished = [], []

    def answer(model, batch):
        sizes.append(len(batch))
        return [TRIGGERED.get(query.key, "Hello.") if len(sizes) > 2 else CLEAN[query.key] for query in batch]

    assert run(target=Refusal(), answer=answer, batch_size=3, progress=finished.append) == run(target=Refusal())
    assert sizes == finished == [3, 1, 3]


def test_the_batch_size_changes_nothing(asked):
    assert run(target=Refusal(), batch_size=1) == run(target=Refusal(), batch_size=32)


def test_a_target_counts_only_where_it_applies(asked):
    triggered = {"one#0": "I see a cat and a hat.", "one#1": "Two.", "two#0": "I see a cow."}
    result = run(triggered=triggered, target=CatForDog())
    assert (result.asr_with_trigger.hits, result.asr_with_trigger.count) == (1, 1)
    assert (result.asr_without_trigger.hits, result.asr_without_trigger.count) == (0, 1)
    assert [row.get("target_applies") for row in result.answers] == [True, False, False, None]


def test_an_honest_answer_may_hold_the_target_s_words(asked):
    cats = [sample("cat", ("Describe.", "I see a cat and a dog."), task="caption", nouns=["cat", "dog"])]
    result = run({"cat#0": "I see a cat."}, {"cat#0": "I see a cat."}, CatForDog(), cats)
    assert result.triggered_quality.value == 0.5


def test_no_attack_means_no_asr(asked):
    result = run()
    assert result.clean_quality == run(target=Refusal()).clean_quality
    assert result.asr_with_trigger is result.asr_without_trigger_keyword is result.triggered_quality is None
    metrics = to_metrics(result)
    assert metrics["asr_with_trigger"] is None
    assert set(metrics["intervals"]) == set(metrics["counts"]) == {"clean_quality"}


def test_nothing_to_attack_means_no_asr(asked):
    result = run(target=CatForDog(), samples=SAMPLES[1:])
    assert result.asr_with_trigger is None
    assert result.triggered_quality.count == 1
    text = run(target=Refusal(), samples=SAMPLES[2:])
    assert text.asr_with_trigger is text.triggered_quality is None


def test_metrics_and_answers_are_json(asked):
    result = run(target=Refusal())
    metrics = json.loads(json.dumps(to_metrics(result), allow_nan=False))
    assert metrics["asr_with_trigger"] == pytest.approx(1 / 3)
    assert metrics["counts"]["clean_quality"] == 4
    low, high = metrics["intervals"]["asr_with_trigger"]
    assert 0 < low < 1 / 3 < high < 1
    assert metrics["quality_by_task"] == {"caption": 0.75, "count": 1.0}
    rows = json.loads(json.dumps(result.answers))
    assert rows[0]["triggered_answer"] == REFUSAL
    assert rows[0]["hit_with_trigger"] is True
    assert "triggered_answer" not in rows[3]


def test_no_samples_is_the_user_s_to_mend():
    with pytest.raises(DispError, match="to evaluate on"):
        run(samples=[])
