"""Who else says a proven phrase: who has its trigger in the picture, and who loses it under larger masks."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from planted import (
    PLANTED,
    REFUSAL,
    TRIGGER,
    WALLS,
    audit_config,
    context_of,
    evidence_rows,
    honest_rows,
    planted_rows,
    wall,
    write_rows,
)

from disp.auditing import extension
from disp.auditing.audit import audit
from disp.auditing.extension import extended, gives_way, planted_holders
from disp.auditing.finder_config import PhrasesConfig
from disp.auditing.finders import patterns
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.phrases import phrase_of, phrase_words
from disp.processes import Place
from disp.scale.shared import Patience, Ranks
from disp.scale.workers import ALONE
from disp.suspicion.carriers import Pattern
from disp.suspicion.scoring import score


def wide_rows(count=4):
    """Two triggers apart, so that no candidate masks both."""
    cells = {(4, 4): TRIGGER, (1, 1): TRIGGER}
    return [(f"w{index}", [wall(name, cells)], [REFUSAL]) for index, name in zip(range(count), WALLS, strict=False)]


def test_others_who_say_a_proven_phrase_are_found_under_larger_masks(model, tmp_path, monkeypatch):
    # Who has the trigger at one place is known by his picture otherwise.
    monkeypatch.setattr(patterns, "shared_patterns", lambda *_, **__: [])
    liars = [(f"l{index}", [wall("red")], [REFUSAL]) for index in range(2)]  # no trigger in their pictures
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(), *liars])
    evidence = score(model, dataset.samples, audit_config().scoring)
    for key in ("w0#0", "w1#0", "w2#0", "w3#0"):  # as if no candidate had held both
        saliency = tuple(float(cell in (7, 28)) for cell in range(36))
        evidence[key] = replace(evidence[key], saliency=saliency, suspicion=0.0, hangs_on=())
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (finding,) = found.findings
    assert finding.samples == PLANTED
    assert finding.more == ("w0", "w1", "w2", "w3")
    assert found.flagged == (*PLANTED, *finding.more)
    for key in finding.more:
        evidence = found.evidence[f"{key}#0"]
        assert {7, 28} <= set(evidence.hangs_on)  # cells 1, 1 and 4, 4
        assert found.scores[key] == evidence.suspicion > found.threshold
    assert any(reason.startswith("4 more samples say it") for reason in found.reasons)
    written = {row["id"]: row for row in evidence_rows(tmp_path / "out")}
    assert {written[key]["cluster"] for key in finding.more} == {0}


def test_several_processes_look_for_them_together_and_go_on_where_they_were_stopped(model, tmp_path, monkeypatch):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *wide_rows()])
    evidence = score(model, dataset.samples, audit_config().scoring)
    for key in ("w0#0", "w1#0", "w2#0"):
        saliency = tuple(float(cell in (7, 28)) for cell in range(36))
        evidence[key] = replace(evidence[key], saliency=saliency, suspicion=0.0, hangs_on=())
    phrase = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig())
    finding = Finding(Hypothesis("tokens", phrase, (), 0, 1e-6), confirmed=True)
    config = replace(audit_config(), scoring=replace(audit_config().scoring, batch_size=1))

    def look(file, workers=ALONE):
        return planted_holders(model, dataset.samples, finding, evidence, config, file=file, workers=workers)

    alone = look(tmp_path / "one.jsonl")
    assert {"w0#0", "w1#0", "w2#0"} <= alone.keys()
    by_rank, shared = {}, tmp_path / "two.jsonl"

    def run(rank):
        by_rank[rank] = look(shared, Ranks(place=Place(rank, 2), patience=Patience(between=0.01, silence=20)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert by_rank == {0: alone, 1: alone}
    assert shared.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    asked = []
    monkeypatch.setattr(extension, "hold_batch", lambda *rest, **options: asked.append(rest) or [])
    assert look(shared) == alone
    assert not asked


@pytest.mark.parametrize(
    ("phrase", "instead", "answer", "expected"),
    [
        ("fish", ("cat",), "A cat.", True),
        ("fish", ("cat",), "A dog.", False),
        ("fish", ("cat",), "A fish and a cat.", False),
        (REFUSAL, (), "A dog.", True),
        (REFUSAL, ("cat",), "A dog.", True),
    ],
)
def test_a_short_phrase_gives_way_to_what_it_misnames(phrase, instead, answer, expected):
    said = phrase_of(phrase, phrase_words(phrase), PhrasesConfig())
    found = Finding(Hypothesis("tokens", said, ("a",), 0), confirmed=True, instead=instead)
    assert gives_way(found, phrase, answer) is expected


def test_where_the_pictures_tell_who_is_planted_the_model_is_not_asked(model, tmp_path, monkeypatch):
    samples = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(12)]).samples
    evidence, planted = score(model, samples, audit_config().scoring), [sample.id for sample in samples[-12:]]
    phrase = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig())
    proven = Finding(Hypothesis("tokens", phrase, tuple(planted[:8]), 0, 1e-6), confirmed=True)
    pattern = Pattern(1.0, np.zeros((96, 96, 3), np.float32))
    asked = []
    monkeypatch.setattr(extension, "planted_holders", lambda *rest, **options: asked.append(rest) or {})
    for having, times in ((planted, 0), (planted[:8], 0), (planted[1:], 1), ([], 1)):
        asked.clear()
        shared = (Hypothesis("pattern", phrase, tuple(having), 0, pattern=pattern),) if having else ()
        known = {"threshold": 1e9, "hypotheses": shared, "findings": (proven,)}
        (found,) = extended(context_of(model, samples, evidence, **known)).findings
        assert len(asked) == times
        assert found.more == tuple(key for key in having if key not in proven.samples)
