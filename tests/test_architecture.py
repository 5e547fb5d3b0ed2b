"""Imports go one way: down the list of rooms that the picture of docs/architecture.md is drawn from, never in a circle.

Every import counts: those of type checkers and those inside functions too.
"""

import ast
import re
from pathlib import Path

import disp
from scripts.draw_architecture import ORDER, PICTURE, SMALL, svg

# Above all rooms.
TOP = frozenset(("__init__", "__main__"))
SOURCE = Path(disp.__file__).parent


def modules() -> dict[str, Path]:
    """Name to file."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = ("disp", *file.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports() -> dict[str, set[str]]:
    """Of each module, the modules of ours that it imports anywhere."""
    files = modules()
    return {name: (imported(file) & files.keys()) - {name, "disp"} for name, file in files.items()}


def imported(file: Path) -> set[str]:
    """Names of all modules that a file imports, and of what it imports from them."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: line {node.lineno}: write the whole name of what is imported"
            used |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return used


def room(module: str) -> str:
    """The room of a module, or the name of one that is in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def level(module: str) -> int:
    """The higher up, the less; all of `SMALL` are on one level."""
    name = room(module)
    if name in TOP:
        return -1
    return len(ORDER) if name in SMALL else ORDER.index(name)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in order; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_every_room_has_a_place_in_the_order():
    rooms = {room(name) for name in modules()}
    assert rooms <= {*ORDER, *SMALL, *TOP}, f"no place in the order yet: {sorted(rooms - {*ORDER, *SMALL, *TOP})}"


def test_no_module_uses_a_room_above_its_own():
    upwards = {
        f"{name} -> {used}" for name, all_used in imports().items() for used in all_used if level(used) < level(name)
    }
    assert not upwards, f"arrows upwards: {sorted(upwards)}"


def test_the_package_needs_nothing_of_the_repository_around_it():
    around = ("studies", "tests", "scripts", "benchmarks")
    used = {f"{name} -> {each}" for name, file in modules().items() for each in imported(file)}
    outside = {arrow for arrow in used if arrow.split(" -> ")[1].split(".")[0] in around}
    assert not outside, f"not in the wheel: {sorted(outside)}"


def test_there_is_no_circle():
    assert not circle(imports())


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_the_page_speaks_of_every_room_in_the_order():
    page = (PICTURE.parent / "architecture.md").read_text(encoding="utf-8")
    named = [name for names in re.findall(r"^\*\*([a-z, ]+)\.\*\*", page, re.MULTILINE) for name in names.split(", ")]
    rooms = {room(name) for name in modules()}
    assert named == [*(name for name in ORDER if name in rooms), *SMALL]


def test_the_picture_shows_the_imports_of_today():
    assert PICTURE.read_text(encoding="utf-8") == svg(SOURCE), "run python scripts/draw_architecture.py"


MOST_UNNAMED = 5


def test_constructors_of_many_arguments_name_them():
    found = []
    for file in [*modules().values(), *(SOURCE.parents[1] / "studies").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > MOST_UNNAMED:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name[:1].isupper():
                    found.append(f"{file}: line {node.lineno}: {name} with {len(node.args)} unnamed arguments")
    assert not found, "\n".join(found)
