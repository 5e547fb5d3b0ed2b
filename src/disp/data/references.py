"""Pictures as rows name them: paths, URIs, bytes; each becomes a file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from disp.data.download import cached, download
from disp.data.sample import ImageSource
from disp.data.whereabouts import (
    as_it_lies,
    forget,
    goes_astray,
    is_same_picture,
    is_there,
    leads_out,
    names_in_uri,
    resolved,
    spelt_otherwise,
    steps_up,
    within,
)
from disp.errors import DispError
from disp.files import write_atomically
from disp.words import shortened

# How the first bytes of a picture's file begin, and what such files are called.
_SIGNATURES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
# How pictures of these kinds begin in base64, and how long such a text is at least: a name is shorter.
_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0", "Qk1", "Qk2", "Qk3", "SUkqA", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+", re.ASCII)
_LEAST_BASE64 = 100
Form = Literal["bytes", "dict", "dict of text", "uri", "base64"]
# Forms that are text of their own.
TEXTS = ("uri", "base64")


@dataclass(frozen=True)
class Embedded:
    """A picture that its row holds itself; its bytes lie in a file, so that no row keeps them in memory.

    Attributes:
        file: where the bytes lie.
        form: bytes; a dict of bytes and path, as `datasets` has it, the bytes as base64 text in JSON; a data URI; or
            base64 text alone.
        name: the path in the dict, or the beginning of the URI, or the blanks before the base64 text.
        fields: the whole dict, with None for the bytes; None where it has only bytes and path.
    """

    file: Path
    form: Form
    name: str | None = None
    fields: Mapping[str, Any] | None = None

    def value(self) -> Any:
        """What the row holds.

        Raises:
            DispError: the file cannot be read.
        """
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise DispError(f"{self.file}: cannot be read ({error.strerror}); check the image folder") from None
        if self.form == "bytes":
            return content
        fields = self.fields or {"bytes": None, "path": self.name}
        if self.form == "dict":
            return {**fields, "bytes": content}
        text = base64.b64encode(content).decode()
        if self.form in TEXTS:
            return f"{self.name or ''}{text}"
        return {**fields, "bytes": text}


# What a row says about a picture, once its bytes have been taken out: a name, a dict with a path, or bytes elsewhere.
Reference = str | Mapping[str, Any] | Embedded


# Names of places elsewhere, such as s3:// and, of some trainers, cluster:s3://.
_STORE = re.compile(r"(?:[\w.-]+:)?[a-z][a-z0-9+.-]+://", re.ASCII | re.IGNORECASE)


def is_base64(text: str) -> bool:
    """Whether a text looks like a picture's bytes in base64."""
    return (
        len(text) >= _LEAST_BASE64
        and text.startswith(_IN_BASE64)
        and _BASE64.fullmatch(text[:_LEAST_BASE64]) is not None
    )


class NotFound(Exception):
    """Why a picture cannot be had."""


@dataclass(frozen=True)
class Found:
    """A picture's file, and what its row says about it.

    Attributes:
        file: the file.
        reference: what the row says.
        linked: whether a link leads to it out of the image folder.
    """

    file: Path
    reference: Reference
    linked: bool = False


def cache_folder() -> Path:
    """Where pictures from inside rows and from the network are kept: DISP_CACHE, or the user's cache folder."""
    if given := os.environ.get("DISP_CACHE"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "disp"


@dataclass(frozen=True)
class Finder:
    """Finds the file of each picture.

    A row must not name a file outside the image folder, by an absolute name or by "..": the data decide what is in a
    row. A link is a thing in the user's own file system, and the usual way to put large folders of pictures in place.
    Still, a set that was unpacked from an archive may have brought it along, and the picture that it leads to would be
    copied into whatever is written. So links that lead out are followed where the user has named the image folder, and
    otherwise in the cache of the Hugging Face hub alone, which consists of links that its own library has made.

    Attributes:
        image_root: folder that names are relative to, and that absolute names must lie in.
        beside: the data's own folder, which names may be relative to as well, where no image folder was given. Names
            such as ``images/0.jpg`` are understood where the image folder is called ``images`` either way.
        allow_download: whether pictures may be fetched from the network.
        rows: the data's own folder, from which names with ".." go; what they lead to must lie in the image folder.
    """

    image_root: Path
    beside: Path | None = None
    allow_download: bool = False
    rows: Path | None = None

    def __post_init__(self) -> None:
        # What was asked of the disk holds for one reading of a set: between two, folders may be made and links changed.
        forget()

    def find(self, picture: Any) -> Found:
        """The picture's file.

        Raises:
            NotFound: it lies outside the folders, does not exist, or is not understood.
            DispError: it cannot be kept in the cache folder.
        """
        if isinstance(picture, bytes):
            return _embedded(picture, "bytes", None)
        if isinstance(picture, Mapping):
            return self._of_dict(picture)
        if picture[:5].lower() == "data:":
            head, comma, text = picture.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise NotFound(f"image {shortened(picture)!r} is no data URI in base64; give a file name")
            return _embedded(_bytes_of(text), "uri", head + comma)
        if picture[:7].lower() in ("http://", "https:/"):
            if not self.allow_download and not cached(picture, cache_folder() / "downloads").exists():
                raise NotFound(
                    f"image {shortened(picture)!r} lies on the network; download the pictures first and name the "
                    "files, or give --allow-download"
                )
            try:
                return Found(download(picture, cache_folder() / "downloads"), picture)
            except DispError as error:
                raise NotFound(str(error)) from None
        if picture[:7].lower() == "file://":
            return self._of_uri(picture)
        if is_base64(text := picture.lstrip()):
            return _embedded(_bytes_of(text), "base64", picture[: len(picture) - len(text)] or None)
        if store := _STORE.match(picture):
            raise NotFound(f"image {shortened(picture)!r} lies in a store ({store[0]}); download it and name the file")
        return self._file(picture, picture)

    def _of_dict(self, picture: Mapping[str, Any]) -> Found:
        content, path = picture.get("bytes"), picture.get("path")
        name = path if isinstance(path, str) else None
        fields = {"path": None, **picture, "bytes": None} if set(picture) - {"bytes", "path"} else None
        if isinstance(content, bytes) and content:
            return _embedded(content, "dict", name, fields)
        if isinstance(content, str) and content:
            return _embedded(_bytes_of(content), "dict of text", name, fields)
        if not name:
            keys = shortened(", ".join(map(repr, picture)))
            raise NotFound(f"image is an object with {keys}; it needs 'path' or 'bytes'")
        found = self.find(name)
        return replace(found, reference=picture) if isinstance(found.reference, str) else found

    def _of_uri(self, uri: str) -> Found:
        """The file of a file:// URI: the one of that very name, as trainers open it, or of what its %20 stand for."""
        names = names_in_uri(uri)
        if not names:
            raise NotFound(f"image {shortened(uri)!r} lies on another machine; copy it here")
        first, *others = [name for name in names if os.path.exists(name)] or names[-1:]
        for other in others:
            if not is_same_picture(Path(first), Path(other)):
                raise NotFound(
                    f"image {shortened(uri)!r} means two files, {shortened(first)} and {shortened(other)}, which "
                    "differ; name the file without file://"
                )
        return self._file(first, uri)

    def _file(self, name: str, reference: Reference) -> Found:
        shown = repr(shortened(name))
        inside = False
        found: Found | None = None
        try:
            for root, named, meant in self._places(name):
                path = as_it_lies(within(named, root), root)
                if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
                    continue
                # The innermost folder that the name lies in.
                inner = self.image_root if root == self.image_root or path.is_relative_to(self.image_root) else root
                if inner != self.image_root and self.beside is None:
                    continue
                inside = True
                if not path.is_file():
                    continue
                if goes_astray(meant, path):
                    raise NotFound(
                        f"image {shown} leads through a link and back by '..', so that it means another file than "
                        f"{path}; name the file without '..'"
                    )
                if found is None:
                    linked = leads_out(path, inner)
                    if linked and self.beside is not None:
                        raise NotFound(
                            f"image {shown} leaves the image folder {inner} by a link; if the links there are yours, "
                            f"give --images {root}"
                        )
                    found = Found(path, reference, linked)
                elif not is_same_picture(path, found.file):
                    # Which of them a trainer opens goes by the folder that it is given, which no row says.
                    raise NotFound(
                        f"image {shown} means two files, {found.file} and {path}, which differ; give --images {root} "
                        "if the second is meant, or take one of them away"
                    )
            if found is not None:
                return found
            better, spelt = self._better_root(name), spelt_otherwise(self.image_root, name)
        except OSError as error:  # too long, links in a circle
            raise NotFound(f"image {shown} cannot be found ({error.strerror or type(error).__name__})") from None
        except (ValueError, RuntimeError) as error:  # a null character, links in a circle
            raise NotFound(f"image {shown} cannot be found ({shortened(str(error))})") from None
        if not inside:
            remedy = f" {better}, in which it lies" if better else ", a folder that holds all pictures"
            raise NotFound(f"image {shown} leaves the image folder {self.image_root}; give --images{remedy}")
        if spelt and not better:
            raise NotFound(
                f"image {shown} does not exist in {self.image_root}, where {shortened(spelt)!r} does; call one as the "
                "other"
            )
        remedy = f" {better}, in which it does" if better else ", the folder that names are relative to"
        link, moved = self.image_root / "images", ""
        if link.is_symlink() and not link.exists():  # the set that a run folder's rows come from was moved
            moved = f" (the link {link} leads to {os.readlink(link)}, which is not there)"
        raise NotFound(f"image {shown} does not exist in {self.image_root}{moved}; give --images{remedy}")

    def _places(self, name: str) -> Iterator[tuple[Path, Path, str]]:
        """Where a file of this name may lie: the folder that it must not leave, the file, and the name as it stands."""
        # Without "..", so that the name stays inside another root as well, when the images are copied there.
        tidy, plain = os.path.normpath(name), name.replace("\\", "/")
        for root in dict.fromkeys((self.image_root, self.beside or self.image_root.parent)):
            yield root, root / tidy, os.path.join(root, plain)
        if self.beside is not None and self.rows not in (None, self.image_root, self.beside):
            yield self.rows, self.rows / tidy, os.path.join(self.rows, plain)
        if self.rows is not None and steps_up(name):
            yield self.image_root, Path(os.path.normpath(self.rows / plain)), os.path.join(self.rows, plain)

    def _better_root(self, name: str) -> Path | None:
        """A folder near the data in which a file of this name lies, for a message."""
        tidy, up = os.path.normpath(name.replace("\\", "/")), steps_up(name)
        if self.rows is None or os.path.isabs(tidy) or up > 2 or up == len(tidy.split("/")):
            return None
        if up:
            folders, below = [Path(os.path.normpath(self.rows / "/".join([".."] * up)))], tidy.split("/")[up:]
        else:
            folders, below = [self.rows, *list(self.rows.parents)[:3], Path.cwd()], tidy.split("/")
        for folder in folders:
            if is_there(folder / below[0]) and folder.joinpath(*below).is_file():
                # The whole disk or everybody's files are no folder of pictures, whatever a row says.
                if folder not in (home := Path.home().absolute(), *home.parents):
                    return folder
        return None


def reference_to(
    source: ImageSource,
    file: Path | None,
    reference: Reference | None,
    image_root: Path,
    what: str,
    linked: bool = True,
) -> Any:
    """What a row is to say about a picture.

    A picture that is where it was keeps the form that its name had; another one is embedded where the first was, and
    else named by its place in the image folder.

    Args:
        source: the picture that the sample has now.
        file: the one that its row named, or None.
        reference: what the row said about it.
        image_root: the image folder.
        what: whose picture it is, for messages.
        linked: whether the image folder may be called ``images`` where the rows are read again.

    Raises:
        DispError: it is in memory, lies outside the image folder, or cannot be read.
    """
    if isinstance(reference, Embedded):
        if not isinstance(source, Path):
            raise DispError(f"{what}: image {source} does not lie in the image folder {image_root}")
        return replace(reference, file=source)
    name = reference.get("path") if isinstance(reference, Mapping) else reference
    same = isinstance(source, Path) and source == file
    if same and isinstance(name, str) and file and _is_kept(name, file, image_root):
        return reference
    if not isinstance(source, Path) or not source.absolute().is_relative_to(image_root):
        raise DispError(f"{what}: image {source} does not lie in the image folder {image_root}")
    name = source.absolute().relative_to(image_root).as_posix()
    if linked and _means_another(name, image_root):
        name = (resolved(image_root) / name).as_posix()
    return {**reference, "path": name} if isinstance(reference, Mapping) else name


def _is_kept(name: str, file: Path, image_root: Path) -> bool:
    """Whether a name that is not plainly the place in the image folder means the same picture beside a link to that."""
    if "://" in name or os.path.isabs(name) or name[:5].lower() == "data:":
        return True
    tidy = os.path.normpath(name)
    if image_root / tidy == file:
        return False
    # As `Finder` looks: in the image folder, then beside the rows, where the link is called "images".
    roots = [image_root, image_root.parent] if image_root.name == "images" else [image_root]
    found = next((path for root in roots if (path := as_it_lies(root / tidy, root)).is_file()), None)
    return found == file and found.is_relative_to(image_root)


def _means_another(name: str, image_root: Path) -> bool:
    """Whether a name means another file as well, where the image folder is called ``images`` and names may say so."""
    first, _, rest = name.partition("/")
    other = image_root / rest
    return first == "images" and bool(rest) and other.is_file() and not is_same_picture(image_root / name, other)


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise NotFound(f"image {shortened(text, 40)!r} is not valid base64; give a file name") from None


def _embedded(content: bytes, form: Form, name: str | None, fields: Mapping[str, Any] | None = None) -> Found:
    digest = hashlib.sha256(content).hexdigest()
    suffix = next(
        (kind for start, kind in _SIGNATURES if content.startswith(start)), "webp" if b"WEBP" in content[:16] else "img"
    )
    file = cache_folder() / "pictures" / digest[:2] / f"{digest}.{suffix}"
    try:
        if not file.exists() or file.stat().st_size != len(content):
            write_atomically(file, lambda temporary: temporary.write_bytes(content))
    except (OSError, DispError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DispError(
            f"{file.parent}: a picture cannot be kept here ({reason}); name another folder in DISP_CACHE"
        ) from None
    return Found(file, Embedded(file, form, name, fields))
