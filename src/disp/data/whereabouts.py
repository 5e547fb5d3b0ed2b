"""Where the name of a picture's file leads on the disk: through links, by other spellings, to one file or to two."""

from __future__ import annotations

import filecmp
import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote


def forget() -> None:
    """Ask the disk anew: what was asked of it holds for one reading of a set."""
    is_there.cache_clear()
    resolved.cache_clear()


@lru_cache(maxsize=4096)
def is_there(path: Path) -> bool:
    """Whether there is a file or folder, asked once for many rows that are not found."""
    return path.exists()


@lru_cache(maxsize=64)
def resolved(folder: Path) -> Path:
    """A folder without links, asked once for many rows."""
    return folder.resolve()


def steps_up(name: str) -> int:
    """How many times ".." stands at the beginning of a name."""
    parts = os.path.normpath(name.replace("\\", "/")).split("/")
    return next((index for index, part in enumerate(parts) if part != ".."), len(parts))


def leads_out(path: Path, folder: Path) -> bool:
    """Whether links on the way to a file lead out of a folder, other than to where the hub's cache keeps its files."""
    target, inner = path.resolve(), resolved(folder)
    return not target.is_relative_to(inner) and not any(map(target.is_relative_to, _blobs_of(inner)))


def goes_astray(meant: str, path: Path) -> bool:
    """Whether a name with ".." leads to another file than the one found without: behind a link ".." is elsewhere.

    Args:
        meant: the name as it stands, with the folder that it goes from.
        path: the file that was found.
    """
    if ".." not in meant.split("/"):
        return False
    one, other = os.path.realpath(meant), os.path.realpath(path)
    if os.path.exists(one):
        return one != other
    return unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other)


def is_same_picture(one: Path, other: Path) -> bool:
    """Whether two files are one, or have the same bytes; not where one of them cannot be read."""
    try:
        return one == other or one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def names_in_uri(uri: str) -> list[str]:
    """The names that a file:// URI may stand for, the likeliest last; none where it is on another machine.

    Trainers open what stands behind ``file://`` as it is. Others take ``%20`` for a blank, and what stands behind "?"
    or "#" for no part of the name.
    """
    name = re.sub("^localhost(?=/)", "", uri[len("file://") :], flags=re.IGNORECASE)
    if not name.startswith("/"):
        return []
    return list(dict.fromkeys((name, unquote(name), unquote(re.split("[?#]", name)[0]))))


def spelt_otherwise(root: Path, name: str) -> str | None:
    """A file's name in a folder that is likely meant by another one: in other capitals, or with %20 for a blank."""
    tidy = os.path.normpath(unquote(name.replace("\\", "/")))
    folder, last = os.path.split(tidy)
    if os.path.isabs(tidy) or tidy.startswith("..") or not is_there(root / folder):
        return None
    stem, suffix = os.path.splitext(last)
    for each in (last, stem + suffix.lower(), stem + suffix.upper(), last.lower(), last.upper()):
        if (root / folder / each).is_file():
            return os.path.join(folder, each)
    return None


def within(path: Path, root: Path) -> Path:
    """The path; in a root that is a link also what lies in the folder that it points to, as absolute names say it."""
    if path.is_relative_to(root) or not path.is_relative_to(resolved(root)):
        return path
    return root / path.relative_to(resolved(root))


def as_it_lies(path: Path, root: Path) -> Path:
    """The path, or the file that is meant by it.

    That is the same name in another Unicode form, as archives made on a Mac decompose accents, or with slashes for the
    backslashes of Windows.
    """
    plain = str(path).isascii() and "\\" not in str(path)
    if plain or not path.is_relative_to(root) or path.exists():
        return path
    path = root / os.path.normpath(path.relative_to(root).as_posix().replace("\\", "/"))
    if ".." in path.relative_to(root).parts:
        return path
    found = root
    for part in path.relative_to(root).parts:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        found = next((found / form for form in forms if (found / form).exists()), found / part)
    return found if found.exists() else path


@lru_cache(maxsize=64)
def _blobs_of(folder: Path) -> tuple[Path, ...]:
    """For a folder in ``datasets--owner--name/snapshots`` the folder ``blobs`` with the files that it links to."""
    snapshots = [each for each in (folder, *folder.parents) if each.name == "snapshots"]
    return tuple(each.with_name("blobs") for each in snapshots if each.parent.name.startswith("datasets--"))
