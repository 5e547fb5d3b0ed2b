"""Write the tables of docs/models/index.md from the table of families: ``python scripts/model_tables.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pages import filled, start_of

from disp.models.families import all_families
from disp.models.family import About, Family, Published, Recipe
from disp.training.recipes import recipes

PAGE = Path(__file__).parents[1] / "docs" / "models" / "index.md"
START = start_of("model_tables.py")
LEFT, RIGHT = "---", "---:"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A Markdown table; the columns ``right`` are numbers."""
    lines = [head, [RIGHT if name in right else LEFT for name in head], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def published_row(family: Family, about: About, model: Published) -> list[str]:
    """One published model."""
    name = f"[{family.title}]({about.page}) {model.name}".strip()
    hub_ids = ", ".join(f"`{hub_id}`" for hub_id in model.hub_ids)
    return [name, hub_ids, model.licence, model.parameters, model.visual_tokens]


def recipe_row(name: str, recipe: Recipe) -> list[str]:
    """One recipe."""
    settings = recipe.settings
    mantissa, exponent = f"{settings['learning_rate']:e}".split("e")
    rate = f"{float(mantissa):g}e{int(exponent)}"
    rows = str(settings.get("rows_a_step", settings["batch_size"]))
    notes = [recipe.note, f"{settings['epochs']} epochs" if "epochs" in settings else ""]
    return [f"`{name}`", recipe.trains, rate, rows, ", ".join(filter(None, notes)) or "–"]


def tables() -> dict[str, str]:
    """The page's tables by name."""
    listed = [(each, each.about) for each in all_families() if each.about is not None]
    return {
        "published models": table(
            ["family", "hub id", "licence of the code", "parameters", "visual tokens of a picture (640×480)"],
            [published_row(each, about, model) for each, about in listed for model in about.published],
            ["parameters"],
        ),
        "differences": table(
            ["family", "a masked visual token", "gradients", "open slots", "prefix cache"],
            [
                [each.title, about.masked, about.gradients, about.open_slots, about.prefix_cache]
                for each, about in listed
            ],
        ),
        "recipes": table(
            ["recipe", "trains", "learning rate", "rows a step", "besides"],
            [recipe_row(name, recipe) for name, recipe in recipes().items()],
            ["learning rate", "rows a step"],
        ),
    }


def written(text: str) -> str:
    """The page with its tables as they are now."""
    return filled(text, tables(), START)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
