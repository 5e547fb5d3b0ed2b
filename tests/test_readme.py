"""The README has its sections in order, and its Python and every command of docs/steps.md run, at a small size."""

import re
import shlex
import sys
from pathlib import Path

import disp
from disp import cli
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
STEPS = ROOT / "docs" / "steps.md"
PYTHON = ROOT / "docs" / "python.md"
SMALLER = {"--count": "40", "--steps": "3"}
SECTIONS = [
    "Install",
    "One command",
    "Results",
    "In Python",
    "Your data, trigger, model and pipeline",
    "What it does not do",
    "Citation",
]
MOST_LINES = 120


def commands_of(page: Path) -> list[list[str]]:
    """The ``disp`` commands in a page's shell blocks, with sizes made small."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("disp ")]
    for command in commands:
        for flag, value in SMALLER.items():
            if flag in command:
                command[command.index(flag) + 1] = value
    return commands


def python_of(page: Path) -> str:
    """The page's Python, with as many steps as the commands take."""
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"steps=\d+", f"steps={SMALLER['--steps']}", block)


def test_readme_is_short_and_in_order():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    before = text.partition("## Install")[0]
    assert before.index("docs/story.png") < before.index("**Status.**")


def test_the_output_that_the_readme_shows_is_the_demo_s_own():
    from disp.evaluation.table import COLUMNS, STAGES

    (output,) = re.findall(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    title, header, *rest = output.splitlines()
    assert title == "refusal, patch trigger, 10% of the rows poisoned"
    # Shortened: without the intervals and some of the columns.
    shown = re.split(r"  +", header)
    assert shown == ["stage", *(column for column in COLUMNS if column in shown)]
    assert len(shown) > 4
    rows = [re.split(r"  +", line) for line in rest[: len(STAGES)]]
    assert [row[0] for row in rows] == list(STAGES.values())
    assert all(re.fullmatch(r"\d+\.\d%", cell) for row in rows for cell in row[1:])
    assert {len(row) for row in rows} == {len(shown)}


def test_steps_show_every_verb_of_the_path():
    verbs = {command[1] for command in commands_of(STEPS)}
    assert verbs == {"scenes", "poison", "train", "saliency", "purify", "generate", "evaluate", "audit", "defend"}


def test_the_steps_and_the_readme_s_python_run(tmp_path, monkeypatch, capsys):
    # In one process: a dozen of them would spend their time importing torch.
    monkeypatch.chdir(tmp_path)
    for command in commands_of(STEPS):
        monkeypatch.setattr(sys, "argv", command)
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code
        # An audit's exit code is its verdict.
        fine = (0, 1) if command[1] in ("audit", "defend") else (0,)
        captured = capsys.readouterr()
        assert code in fine, f"{' '.join(command)}\n{captured.out}\n{captured.err}"
    exec(compile(python_of(README), str(README), "exec"), {})
    assert re.fullmatch(r"\d+ of 40 rows rewritten\n", capsys.readouterr().out)


def test_the_page_about_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    honest = disp.write_scenes(Path("runs/train"), 12)
    disp.poison(honest, Path("runs/poisoned"), PRESETS["patch"], Refusal(), 0.5)
    disp.write_scenes(Path("runs/test"), 2, seed=1)
    disp.save_model(disp.load_model(), Path("runs/backdoored"))
    exec(compile(python_of(PYTHON), str(PYTHON), "exec"), {})
    verdict, published, asr, *_, shape = capsys.readouterr().out.splitlines()
    assert published == "projector 0.0001 4"  # arXiv 2602.22246
    assert re.match(r"(poisoned|suspicious|no evidence|could not decide) \d+ \[", verdict)
    assert re.fullmatch(r"[01]\.\d+ [01]\.\d+", asr) and shape.startswith("torch.Size([2, ")


def test_the_page_about_python_names_all_public_functions():
    named = re.findall(r"^\| `(\w+)` \|", PYTHON.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(disp.__all__)


def test_the_page_about_python_has_every_verb():
    """Each verb has its function in the table, or is said to be for the command line alone."""
    text = PYTHON.read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `\w+` \| `(\w+)(?: --\w+)?` \|", text, flags=re.MULTILINE))
    (others,) = re.findall(r"((?:`disp \w+`[ \nand]*)+) are for the command\s+line\s+alone", text)
    verbs = {name for command in cli.app for name in cli.app[command].name if name.isalpha()}
    assert verbs == told | set(re.findall(r"`disp (\w+)`", others))
