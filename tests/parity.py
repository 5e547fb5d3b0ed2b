"""Compare ours with what a family's published code computed for a tiny model.

    python tests/parity.py FOLDER [FOLDER ...]

A folder holds config.json, model.safetensors with the published key names, io.safetensors and meta.json. One line a
quantity with its largest difference; the exit status is 1 if one is beyond its tolerance, 2 for an unknown folder.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from disp.errors import DispError
from disp.models.loading import family_of


def comparison(folder: Path) -> ModuleType:
    """The module that compares a folder of this family, ``recorded.py`` in its folder of tests/models.

    Raises:
        DispError: the folder is of no known family, or a file is missing.
    """
    name = family_of(folder).name
    for file in ("meta.json", "io.safetensors"):
        if not (folder / file).is_file():
            raise DispError(f"{folder}: no {file}; a folder of recorded outputs is wanted")
    return importlib.import_module(f"models.{name}.recorded")


def report(folder: Path) -> bool:
    """Print one line a quantity; whether all are within tolerance."""
    module, good, count = comparison(folder), True, 0
    for difference in module.compare(folder):
        count += 1
        good &= difference.ok
        mark = "ok  " if difference.ok else "FAIL"
        print(
            f"{mark} {difference.largest:<12.3g} (allowed {difference.tolerance:g})  {difference.quantity}", flush=True
        )
    package, verdict = module.__name__.removesuffix(".recorded"), "all" if good else "NOT all"
    family = package.rpartition(".")[2]
    print(f"{folder.name}: {family}, {count} quantities, {verdict} within tolerance")
    return good and count > 0


def main(folders: list[str]) -> int:
    if not folders:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return 0 if all([report(Path(folder)) for folder in folders]) else 1
    except DispError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
