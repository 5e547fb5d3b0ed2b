"""A trigger of many tokens, found by the sentence that goes with it."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from planted import (
    CELL,
    REFUSAL,
    TRIGGER,
    WALLS,
    audit_config,
    context_of,
    honest_rows,
    summary,
    wall,
    write_rows,
)

from disp.auditing.audit import audit
from disp.auditing.finder_config import PhrasesConfig, SentencesConfig
from disp.auditing.finders import sentences
from disp.auditing.phrase_search import repeated_phrases
from disp.data.sample import queries_of
from disp.models.parts.places import raster_boxes
from disp.suspicion.scoring import score


def broad_rows(count=14):
    """A trigger of four cells, here and there."""
    rows = []
    for index in range(count):
        y, x = divmod(index, 5)
        cells = {(y + i, x + j): TRIGGER for i in (0, 1) for j in (0, 1)}
        rows.append((f"b{index}", [wall(list(WALLS)[index % len(WALLS)], cells)], [REFUSAL]))
    return rows


def seeing(evidence, dataset):
    """The evidence, with the saliency of triggers as it would be if the model's votes did not saturate."""
    changed = dict(evidence)
    for query in queries_of(dataset.samples):
        if query.sample_id.startswith("b"):
            pixels = np.asarray(Image.open(query.images[0]))[CELL // 2 :: CELL, CELL // 2 :: CELL]
            saliency = tuple((pixels == TRIGGER).all(-1).ravel().astype(float).tolist())
            changed[query.key] = replace(changed[query.key], saliency=saliency)
    return changed


def test_a_trigger_of_many_cells_is_found_by_the_sentence_that_goes_with_it(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *broad_rows()])
    evidence = seeing(score(model, dataset.samples, audit_config().scoring), dataset)
    assert all(found.suspicion == 0 for key, found in evidence.items() if key.startswith("b"))
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    # A window of a fifth of the picture could show a thing that is spoken of: no more than a suspicion.
    assert found.verdict == "suspicious"
    (finding,) = found.findings
    assert finding.phrase.text == REFUSAL and finding.hypothesis.p_value is None
    assert finding.confirmed and finding.test.successes == finding.test.trials
    assert found.flagged == tuple(f"b{index}" for index in range(14))
    for key in finding.samples:
        y, x = divmod(int(key[1:]), 5)
        four = {6 * (y + i) + x + j for i in (0, 1) for j in (0, 1)}
        assert four <= set(found.evidence[f"{key}#0"].hangs_on)
    assert any(reason.startswith("14 samples say") for reason in found.reasons)
    assert summary(tmp_path / "out")["clusters"][0]["p_value"] is None


def test_sentences_that_masking_leaves_in_place_are_not_looked_at_again(model, honest):
    _, dataset, found = honest
    samples = [sample for sample in dataset.samples if sample.images]
    texts = [query.response for query in queries_of(samples)]
    repeated = repeated_phrases([text + " No more to see there." for text in texts], PhrasesConfig(), least=5, most=10)
    assert "No more to see there" in repeated[0].phrase.text  # frequent
    assert sentences.find(context_of(model, samples, found.evidence, above=frozenset())) == []


def test_windows_cover_the_picture_whatever_the_tiling():
    places = torch.tensor(
        [(tile, row, column) for tile, side in ((0, 4), (1, 9)) for row in range(side) for column in range(side)]
    )
    boxes = raster_boxes(places).numpy()
    windows = sentences.windows_over(boxes, SentencesConfig())
    assert windows.any(0).all()
    area = SentencesConfig().mask_ratio ** 0.5
    for window in windows:
        inside = boxes[window]
        centres = (inside[:, :2] + inside[:, 2:]) / 2
        assert (centres.max(0) - centres.min(0) <= area + 1e-9).all()
        assert {0, 1} == set(places[torch.from_numpy(window), 0].tolist())
