"""Every page's links lead somewhere, and every command that it shows is one that the program knows."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from disp.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "models", ROOT / "studies", ROOT / ".github")
    for path in folder.glob("*.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's shell blocks, one a line."""
    blocks = [block for language, block in FENCE.findall(page.read_text(encoding="utf-8")) if language == "bash"]
    return "".join(blocks).replace("\\\n", " ").splitlines()


def inline_commands(page: Path) -> list[list[str]]:
    """What stands in a page's prose as code and begins with ``disp`` or ``python -m studies``."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [shlex.split(" ".join(code.split())) for code in re.findall(r"`([^`]+)`", text) if "'" not in code]
    return [words for words in found if len(words) > 1 and (words[0] == "disp" or words[:2] == ["python", "-m"])]


def options_of(verb: str) -> set[str]:
    """The option names of a verb."""
    names = {"--help"}
    for argument in app[verb].assemble_argument_collection():
        names |= set(argument.names)
    return names


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name and not error.name.startswith("disp"):
                return True  # a library that is not installed, such as lmms-eval
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def check_study(words: list[str]) -> None:
    """That a ``python -m`` command names a module of this repository, and options that its source knows."""
    module, *rest = words[2:]
    if not module.startswith("studies."):
        return
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, f"no module {module}"
    source = Path(found.origin).read_text(encoding="utf-8")
    for word in rest:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{module} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_known(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["disp"]:
            try:
                app.parse_args(words[1:], print_error=False, exit_on_error=False)
            except CycloptsError as error:
                pytest.fail(f"{page.name}: {line}\n{error}")
        elif words[:2] == ["python", "-m"]:
            check_study(words)
    for words in inline_commands(page):
        if words[:2] == ["python", "-m"]:
            check_study(words)
        elif words[1].isalpha() and words[1].islower():  # VERB stands for any
            known = options_of(words[1])
            unknown = [word for word in words[2:] if word.startswith("--") and word.partition("=")[0] not in known]
            assert not unknown, f"{page.name}: disp {words[1]} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        for node in ast.walk(ast.parse(block)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "disp":
                for name in node.names:
                    assert exists(f"{node.module}.{name.name}"), f"{page.name}: {node.module} has no {name.name}"
    # Modules and what is in them, as code in the prose: `disp.decoding.samplers.SAMPLERS`.
    for name in re.findall(r"`(disp(?:\.\w+)+)`", FENCE.sub("", text)):
        assert exists(name), f"{page.name}: {name}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    families = (ROOT / "docs" / "models" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    for page in (ROOT / "docs" / "models").glob("*.md"):
        listed = page.name == "index.md" or f"({page.name})" in families or f"(models/{page.name})" in index
        assert listed, page.name
