"""The worked examples of CONTRIBUTING.md: each is short, and works with no more than its line in a table."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.tiny import write_checkpoint
from PIL import Image
from planted import PLANTED, REFUSAL, audit_config, honest_rows, planted_model, planted_rows, write_rows

from disp.attacks import targets, triggers
from disp.attacks.poison import load_attack
from disp.auditing.audit import audit
from disp.auditing.finders import FINDERS
from disp.auditing.wording import WORDS
from disp.baselines.table import DEFENCES
from disp.cli import app
from disp.data.loading import load_dataset
from disp.data.sample import Query, open_image
from disp.data.scene_dataset import write_scenes
from disp.decoding.generate import decode, generate
from disp.decoding.samplers import SAMPLERS, decode_config
from disp.draws import generator
from disp.errors import DispError
from disp.models.families import FAMILIES
from disp.models.loading import load_model
from disp.report.html import write_report

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
MOST_LINES = 40
TABLES = (
    *(triggers.KINDS, triggers.PRESETS, targets.TARGETS, targets.PRESETS),
    *(DEFENCES, SAMPLERS, FAMILIES, FINDERS, WORDS),
)


def blocks_of(heading: str) -> list[str]:
    """The blocks of Python of a section."""
    _, _, section = GUIDE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)


@pytest.fixture
def run_example():
    """A function that runs a section's example; what it adds to tables is taken out again."""
    before = [dict(table) for table in TABLES]

    def run(heading: str) -> dict[str, object]:
        names: dict[str, object] = {"__name__": "example"}
        blocks = blocks_of(heading)
        assert blocks, f"no example of {heading}"
        for block in blocks:
            exec(compile(block, f"{GUIDE.name}: {heading}", "exec"), names)
        return names

    yield run
    for table, content in zip(TABLES, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture
def honest(tmp_path):
    """A folder with eight honest scenes."""
    write_scenes(tmp_path / "honest", 8, 3)
    return tmp_path / "honest"


def test_examples_are_short():
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert len(block.splitlines()) <= MOST_LINES, block[:80]


def test_family(run_example, tmp_path, picture):
    family, _ = blocks_of("A family")
    assert family == (Path(__file__).parent / "models" / "toy" / "family.py").read_text(encoding="utf-8")
    run_example("A family")
    folder = write_checkpoint("toy", tmp_path / "toy", ["Describe the picture.", "A red apple."])
    model = load_model(folder, device="cpu")
    assert type(model).__name__ == "Toy"
    query = Query("a", 0, (picture(1),), (), "<image>\nDescribe the picture.")
    assert model.encode([query]).visual_mask.sum() == model.config.side**2
    assert len(generate(model, [query])) == 1


def test_trigger(run_example, honest, tmp_path):
    run_example("A trigger")
    app(
        ["poison", str(honest), "--out", str(tmp_path / "out"), "--trigger", "frame", "--rate", "0.5"],
        result_action="return_value",
    )
    attack = load_attack(tmp_path / "out" / "manifest.json")
    assert attack.trigger == triggers.PRESETS["frame"]
    poisoned = {row["id"] for row in json.loads((tmp_path / "out" / "manifest.json").read_text())["poisoned_rows"]}
    assert len(poisoned) == 4
    for sample in load_dataset(tmp_path / "out").samples:
        corner = open_image(sample.images[0]).getpixel((0, 0))
        assert (corner == (255, 0, 0)) == (sample.id in poisoned)


def test_trigger_leaves_size_and_input_alone(run_example, picture):
    run_example("A trigger")
    image = picture(1, 60).resize((90, 60))
    before = image.tobytes()
    marked, told = triggers.PRESETS["frame"].apply(image, generator(0))
    assert (marked.size, marked.mode, told) == (image.size, "RGB", {"width": 3})
    assert image.tobytes() == before


def test_target(run_example, honest, tmp_path):
    run_example("A target")
    app(
        ["poison", str(honest), "--out", str(tmp_path / "out"), "--target", "opening", "--rate", "0.5"],
        result_action="return_value",
    )
    target = load_attack(tmp_path / "out" / "manifest.json").target
    assert target == targets.PRESETS["opening"]
    answers = {sample.id: sample.turns[0].response for sample in load_dataset(honest).samples}
    planted = [
        sample for sample in load_dataset(tmp_path / "out").samples if sample.turns[0].response != answers[sample.id]
    ]
    assert len(planted) == 4
    for sample in planted:
        assert target.exact(sample.turns[0].response, answers[sample.id])
        assert not target.exact(answers[sample.id], answers[sample.id])
    assert target.keyword("Well, AS EVERYBODY knows: a dog.", "A dog.")


def test_finder(run_example, tmp_path):
    FINDERS.clear()  # none of the others finds the phrase first
    run_example("A finder")
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    config = audit_config()
    config = replace(config, scoring=replace(config.scoring, least_suspicion=1e6))  # no row is flagged by itself
    found = audit(planted_model(), dataset, config, tmp_path / "out")
    (finding,) = found.findings
    assert (found.verdict, finding.found_by, finding.phrase.text) == ("suspicious", "answer", REFUSAL)
    assert finding.confirmed and found.flagged == PLANTED
    assert any("8 samples have the same answer" in reason for reason in found.reasons)
    write_report(tmp_path / "out")
    assert "the whole answer of 8 samples" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_sampler(run_example, tiny_model64, queries):
    run_example("A sampler")
    model, config = tiny_model64, decode_config(6, 3, sampler="left")
    decoded = decode(model, model.encode(queries), config)
    for row, query in enumerate(queries):
        answer = torch.full((1, 6), model.mask_token_id)
        for first in range(0, 6, 2):
            with torch.no_grad():
                logits = model.denoise(model.encode([query]), answer).float()
            logits[..., [model.mask_token_id, *model.banned_token_ids]] = -torch.inf
            answer[0, first : first + 2] = logits[0, first : first + 2].argmax(-1)
        assert decoded[row].tolist() == answer[0].tolist()
    with pytest.raises(DispError, match="option of the sampler 'left': 'threshold'"):
        decode_config(6, 3, sampler="left", threshold=0.5)


def test_rival_defence(run_example, honest, tmp_path, capsys):
    run_example("A rival defence")
    app(
        ["baseline", "flip", "builtin", str(honest), "--out", str(tmp_path / "out"), "--set", "upside_down=true"],
        result_action="return_value",
    )
    assert "8 of 8 rows answered anew" in capsys.readouterr().out
    ran = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["config"]
    assert (ran["defence"], ran["parameters"]) == ("flip", {"upside_down": True})


def test_rival_defence_changes_pictures_alone(run_example, tiny_model, queries):
    run_example("A rival defence")
    flip = DEFENCES["flip"]
    once = flip.encode(tiny_model, queries, flip.config(), 0)
    plain = tiny_model.encode(queries)
    # A picture flipped twice is the old one.
    mirrored = [
        replace(q, images=tuple(each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in q.images)) for q in queries
    ]
    assert torch.equal(flip.encode(tiny_model, mirrored, flip.config(), 0).embeds, plain.embeds)
    assert not torch.equal(once.embeds, plain.embeds)
    assert torch.equal(once.embeds[~once.visual_mask], plain.embeds[~plain.visual_mask])
