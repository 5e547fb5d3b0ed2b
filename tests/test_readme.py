"""Every ``disp`` command of the README, and its Python, runs, in order, in one folder, at a small size."""

import re
import shlex
import sys
from pathlib import Path

from disp import cli

README = Path(__file__).parents[1] / "README.md"
# `make demo` and its `disp demo` are the end-to-end test's.
SMALLER = {"--count": "40", "--steps": "3"}


def readme_commands() -> list[list[str]]:
    """The ``disp`` commands in the README's shell blocks, with sizes made small."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("disp ")]
    for command in commands:
        for flag, value in SMALLER.items():
            if flag in command:
                command[command.index(flag) + 1] = value
    return [command for command in commands if command[1] != "demo"]


def readme_python() -> str:
    """The README's Python, with as many steps as the commands take."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"steps=\d+", f"steps={SMALLER['--steps']}", block)


def test_readme_shows_every_verb():
    verbs = {command[1] for command in readme_commands()}
    shown = {"scenes", "poison", "train", "saliency", "purify", "generate", "evaluate", "audit", "defend"}
    assert verbs == shown


def test_readme_commands_run(tmp_path, monkeypatch, capsys):
    # In one process: a dozen of them would spend their time importing torch.
    monkeypatch.chdir(tmp_path)
    for command in readme_commands():
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
    exec(compile(readme_python(), str(README), "exec"), {})
    assert re.fullmatch(r"\d+ of 40 rows rewritten\n", capsys.readouterr().out)
