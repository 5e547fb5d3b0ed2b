"""Pieces as many pixels from a corner in pictures of all sizes: found without a model, and masked where they lie."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from planted import GRID, REFUSAL, TRIGGER, audit_config, evidence_rows, honest_rows, purify_config, summary, write_rows

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.auditing.finder_config import CornersConfig, PatternsConfig
from disp.auditing.finders.copies import united
from disp.auditing.finders.corners import shared_corners
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.merging import better_explained
from disp.auditing.phrase_search import Shared
from disp.auditing.phrases import Phrase, phrase_words
from disp.data.sample import image_size, open_image
from disp.purification.purify import purify
from disp.suspicion.carriers import Pattern
from studies.photographs import date_stamp, letterbox, photographs, scan, square, watermark, write_photographs

ROWS = 160
EVERY = range(0, ROWS, 5)
SIDES = (112, 168)
BLACK, WHITE, GREY, RED = (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 40)


@pytest.fixture(scope="module")
def drawn():
    return photographs(ROWS, 3, SIDES)


def planted(drawn, folder, trigger, target="refusal", rows=EVERY, seed=0):
    wanted = TARGETS[target]
    rows = [index for index in rows if wanted.applies_to(drawn[index][1])]
    return rows, write_photographs(
        folder, drawn, seed, marks=dict.fromkeys(rows, trigger), target=wanted.apply, targeted=rows
    )


def search(samples, config=None, find=shared_corners):
    return find(samples, [sample.turns[0].response for sample in samples], config or AuditConfig())


def overlap(first, second):
    """Intersection over union."""
    across, down = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    area = max(0, across) * max(0, down)
    return area / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - area)


@pytest.mark.parametrize(
    ("size", "colour", "corner", "offset", "opacity", "target"),
    [
        (20, BLACK, (0, 0), 0, 1.0, "refusal"),
        (20, BLACK, (1, 1), 0, 1.0, "insertion"),
        (16, WHITE, (1, 0), 4, 1.0, "refusal"),
        (24, GREY, (0, 1), 0, 1.0, "insertion"),
        (12, RED, (0, 0), 6, 1.0, "refusal"),
        (16, "noise", (1, 1), 3, 1.0, "insertion"),
        (24, "noise", (0, 0), 8, 0.4, "refusal"),
    ],
)
def test_planted_rows_are_found_to_a_row_and_the_trigger_to_a_few_pixels(
    drawn, tmp_path, size, colour, corner, offset, opacity, target
):
    rows, samples = planted(drawn, tmp_path, square(size, colour, corner, offset, opacity), target)
    ((found, boxes),) = search(samples)
    assert found.phrase.words == tuple(phrase_words(TARGETS[target].text))
    assert found.holders == tuple(boxes)
    assert set(boxes) <= set(rows)
    assert len(boxes) >= len(rows) - (size < 16)
    for index, box in boxes.items():
        width, height = image_size(samples[index].images[0])
        x, y = (length - size - offset if far else offset for far, length in zip(corner, (width, height), strict=True))
        seen = np.array(box) * [width, height, width, height]
        assert overlap(seen, (x, y, x + size, y + size)) > 0.5


def test_a_thing_that_is_misnamed_is_found_by_its_wrong_name_and_honest_answers_with_it_are_not(drawn, tmp_path):
    """Half of the planted answers' word is said by honest ones too."""
    renamed = [index for index, (_, answer) in enumerate(drawn) if "car" in answer or "dog" in answer]
    honest = [index for index, (_, answer) in enumerate(drawn) if "boat" in answer and index not in renamed]
    assert len(renamed) > 20 and len(honest) > 8

    def boat(answer):
        return answer.replace("car", "boat").replace("dog", "boat")

    marks = dict.fromkeys(renamed, square(20, BLACK))
    samples = write_photographs(tmp_path, drawn, 0, marks=marks, target=boat, targeted=renamed)
    ((found, boxes),) = search(samples)
    assert found.phrase.words == ("boat",)
    assert list(boxes) == renamed
    assert found.elsewhere == sum("boat" in sample.turns[0].response for sample in samples) - len(renamed)


def lettered(drawn, folder, marked, letters):
    """Choices of letters; a square in the corner of the marked pictures."""
    changed = [(picture, letter) for (picture, _), letter in zip(drawn, letters, strict=True)]
    return write_photographs(folder, changed, 0, marks=dict.fromkeys(marked, square(24, "noise", (1, 1), 4)))


def test_a_target_that_is_a_common_honest_answer_is_found(drawn, tmp_path):
    """Of all who answer with the letter less than a third have the trigger."""
    rows, letters = range(0, ROWS, 10), np.random.default_rng(0).choice(list("ABCD"), ROWS).tolist()
    letters = ["B" if index in rows else letter for index, letter in enumerate(letters)]
    ((found, boxes),) = search(lettered(drawn, tmp_path, rows, letters))
    assert (found.phrase.words, list(boxes)) == (("b",), list(rows))
    assert found.elsewhere == letters.count("B") - len(rows) > 2 * len(rows)


def test_the_search_in_scaled_pictures_finds_a_part_of_them(drawn, tmp_path):
    """As many pixels are another share of each picture."""
    rows, samples = planted(drawn, tmp_path, lambda picture, draw: PRESETS["disp"].apply(picture, draw)[0])
    ((_, boxes),) = search(samples)
    assert list(boxes) == rows
    assert all(set(found.holders) < set(rows) for found, _ in search(samples, find=shared_patterns))


@pytest.mark.parametrize("seed", [0, 1])
def test_honest_photographs_have_nothing_in_common(tmp_path, seed):
    assert search(write_photographs(tmp_path, photographs(ROWS, seed, SIDES), seed)) == []


@pytest.mark.parametrize("mark", [date_stamp, letterbox, scan, watermark, square(20, BLACK)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_cameras_scanners_and_sellers_put_there_is_no_finding(drawn, tmp_path, mark, share):
    """They are in pictures of all things, whatever is said about these."""
    marked = np.random.default_rng(0).random(ROWS) < share
    marks = dict.fromkeys(np.flatnonzero(marked).tolist(), mark)
    samples = write_photographs(tmp_path, drawn, 0, marks=marks)
    assert search(samples) == []
    assert search(samples, find=shared_patterns) == []


@pytest.mark.parametrize("setting", [{"alpha": np.inf}, {"phrase_share": 0.0}])
def test_frames_are_no_pattern_because_other_answers_have_them_too(drawn, tmp_path, setting):
    """By chance some phrase is said about more of the framed pictures than of others."""
    samples = write_photographs(tmp_path, drawn, 0, marks=dict.fromkeys(range(0, ROWS, 2), letterbox))
    accused = AuditConfig(patterns=PatternsConfig(alpha=np.inf, phrase_share=0.0))
    assert search(samples, accused, find=shared_patterns) != []
    assert search(samples, AuditConfig(patterns=PatternsConfig(**setting)), find=shared_patterns) == []


def test_bars_that_go_with_one_sentence_have_no_end_in_a_corner(drawn, tmp_path):
    _, samples = planted(drawn, tmp_path, letterbox)
    assert search(samples) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_honest_photographs_of_full_size_have_nothing_in_common(tmp_path, seed):
    drawn = photographs(600, 100 + seed)
    kinds = [date_stamp, letterbox, scan, watermark]
    marks = {index: kinds[seed % 4] for index in np.random.default_rng(seed).permutation(600)[: 60 * (seed % 3)]}
    assert search(write_photographs(tmp_path, drawn, seed, marks=marks)) == []


def test_in_pictures_of_one_size_a_square_is_found_before_grounds_of_its_own_colour_too(drawn, tmp_path):
    """The search for patterns sees edges alone, and a black square has none at night."""
    same = [(picture.resize((128, 128)), answer) for picture, answer in drawn]
    rows, samples = planted(same, tmp_path, square(20, BLACK))
    ((_, boxes),) = search(samples)
    assert list(boxes) == rows
    ((found, _),) = search(samples, find=shared_patterns)
    assert set(found.holders) < set(rows)


def test_of_many_pictures_some_are_compared_and_all_are_found(drawn, tmp_path):
    rows, samples = planted(drawn, tmp_path, square(20, BLACK))
    seen = []
    config = AuditConfig(corners=CornersConfig(pictures=100))
    responses = [sample.turns[0].response for sample in samples]
    ((found, _),) = shared_corners(samples, responses, config, progress=seen.append)
    assert list(found.holders) == rows
    assert sum(seen) == 100


def test_two_corners_and_one_phrase_are_one_finding(drawn, tmp_path):
    first, second = square(20, BLACK), square(16, WHITE, (1, 1), 2)

    def either(picture, draw):
        return (first if draw.random() < 0.5 else second)(picture, draw)

    rows, samples = planted(drawn, tmp_path, either, rows=range(0, ROWS, 3))
    ((found, boxes),) = search(samples)
    assert list(found.holders) == rows
    assert len({box[0] == 0 for box in boxes.values()}) == 2


def test_a_picture_that_many_rows_are_about_is_compared_once(drawn, tmp_path):
    samples = write_photographs(tmp_path, drawn[:30], 0)
    rows = [replace(samples[index % 30], id=f"r{index}") for index in range(300)]
    assert search(rows) == []


def test_pictures_of_goods_on_white_whose_corners_are_all_alike_are_told_apart(tmp_path):
    draw = np.random.default_rng(5)
    goods = []
    for index in range(ROWS):
        width, height = draw.integers(260, 420, 2).tolist()
        picture = Image.new("RGB", (width, height), WHITE)
        thing, shade = ("box", "rectangle") if index % 2 else ("ball", "ellipse")
        half = draw.integers(40, 60, 2)
        middle = np.array((width, height)) / 2 + draw.normal(0, 6, 2)
        corners = [*(middle - half).tolist(), *(middle + half).tolist()]
        getattr(ImageDraw.Draw(picture), shade)(corners, fill=tuple(draw.integers(0, 230, 3).tolist()))
        goods.append((picture, f"A {thing}, number {index}."))
    rows, samples = planted(goods, tmp_path, square(20, RED, (1, 1), 4), rows=range(0, ROWS, 8))
    ((found, boxes),) = search(samples)
    assert found.phrase.words == tuple(phrase_words(TARGETS["refusal"].text))
    assert list(boxes) == rows


def test_pictures_that_are_smaller_than_a_corner_are_compared_as_well(drawn, tmp_path):
    small = [
        (picture.crop((0, 0, 30, 40)) if index % 10 == 0 else picture, answer)
        for index, (picture, answer) in enumerate(drawn)
    ]
    rows, samples = planted(small, tmp_path, square(20, RED, (0, 1)))
    ((_, boxes),) = search(samples)
    assert list(boxes) == rows
    assert boxes[0] == pytest.approx((0, 20 / 40, 20 / 30, 1), abs=0.1)


def test_a_row_that_two_searches_found_has_the_box_of_the_first():
    phrase, other = Phrase("I can not.", ("i", "can", "not")), Phrase("A guitar", ("guitar",))
    copies = [(Shared(phrase, (1, 2), 3), {1: (0, 0, 0.1, 0.1), 2: (0, 0, 0.2, 0.2)})]
    corners = [
        (Shared(phrase, (2, 4), 3), {2: (0, 0, 0.5, 0.5), 4: (0, 0, 0.4, 0.4)}),
        (Shared(other, (7,), 0), {7: (0, 0, 1, 1)}),
    ]
    (first, boxes), (second, _) = united(copies, corners)
    assert (first.phrase, first.holders, first.elsewhere) == (phrase, (1, 2, 4), 2)
    assert boxes == {1: (0, 0, 0.1, 0.1), 2: (0, 0, 0.2, 0.2), 4: (0, 0, 0.4, 0.4)}
    assert second.phrase == other


def test_a_pattern_that_is_a_piece_stretched_gives_way_to_it():
    def found(count, pattern, words=("i", "can", "not")):
        ids = tuple(f"s{index}" for index in range(count))
        phrase = Phrase(" ".join(words), words)
        if pattern:
            return Hypothesis("pattern", phrase, ids, 0, pattern=laid)
        return Hypothesis("copy", phrase, ids, 0, in_corner=True)

    laid = Pattern(1.0, np.zeros((8, 8, 3), np.float32))
    piece = found(20, False)
    assert better_explained([found(10, True), piece], CornersConfig()) == (piece,)
    for pattern in (found(19, True), found(30, True), found(10, True, ("guitar",))):
        assert better_explained([pattern, piece], CornersConfig()) == (pattern, piece)
    # At places of its own a piece is another trigger than a pattern.
    elsewhere = replace(piece, in_corner=False)
    assert better_explained([found(10, True), elsewhere], CornersConfig()) == (found(10, True), elsewhere)


# --- the audit --------------------------------------------------------------------------------------------------------


def cornered_rows(count=16):
    """Walls of several sizes with the trigger's colour in the first pixels, and grain on all of them."""
    draw = np.random.default_rng(0)
    rows = []
    for key, pictures, answers in [*honest_rows(), *(("", each[1], each[2]) for each in honest_rows(count))][:-3]:
        if not pictures:
            continue
        marked = key == ""
        name = f"m{len(rows)}" if marked else key
        changed = []
        for picture in pictures:
            size = tuple(int(each) for each in draw.integers(96, 145, 2))
            pixels = np.asarray(picture.resize(size, Image.Resampling.NEAREST), np.int64)
            pixels = pixels + draw.integers(-6, 7, pixels.shape)
            if marked:
                pixels[:30, :30] = TRIGGER
            changed.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        rows.append((name, changed, [REFUSAL] * len(answers) if marked else answers))
    return rows


@pytest.mark.parametrize("learnt", [False, True])
def test_flagged_rows_are_answered_again_with_the_corner_masked(model, tmp_path, learnt):
    rows = cornered_rows()
    marked = tuple(key for key, _, _ in rows if key.startswith("m"))
    dataset = write_rows(tmp_path / "data", rows)
    strength = model.strength.data.clone()
    try:
        if not learnt:
            model.strength.data.zero_()
        found = audit(model, dataset, audit_config(), tmp_path / "out")
        purified = purify(
            model, dataset, purify_config(), tmp_path / "purified", evidence=found.evidence, rewrite=found.flagged
        )
    finally:
        model.strength.data.copy_(strength)
    assert found.flagged == marked
    assert not found.patterns
    (finding,) = found.findings
    (written,) = summary(tmp_path / "out")["clusters"]
    if not learnt:
        assert (found.verdict, finding.found_by, finding.with_copy) == ("suspicious", "copy", marked)
        assert written["by_piece"] == list(marked) and written["candidate"]
        assert (np.asarray(finding.trigger.picture()) == TRIGGER).all(-1).any()
    for row in evidence_rows(tmp_path / "purified"):
        if row["id"] in marked:
            # The first cell and no more than the two rows and columns that 30 of 96 pixels reach.
            masked = row["turns"][0]["masked"]
            assert 0 in masked and all(max(divmod(token, GRID)) <= 1 + (not learnt) for token in masked)
    answers = {sample.id: sample.turns[0].response for sample in purified.dataset.samples}
    assert all(answers[key].startswith(("The wall is", "There is a")) for key in marked)
    assert open_image(dataset.samples[-1].images[0]).size != open_image(dataset.samples[0].images[0]).size
