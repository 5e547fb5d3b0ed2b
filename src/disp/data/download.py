"""Fetching a picture from the network, only where it was asked for."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from disp.errors import DispError
from disp.files import write_atomically
from disp.words import shortened

# A photograph of 64 million pixels as JPEG has about 30 MB; nothing larger would be opened.
MAX_BYTES = 50_000_000
SECONDS = 30.0


class _Checked(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a first request may go."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_address(url: str) -> None:
    """Make sure that a URL leads to a public machine: a dataset must not reach into the user's own network.

    Raises:
        ValueError: it does not.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("only http and https are fetched")
    for *_, address in socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM):
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise ValueError("it lies in a private network")


def cached(url: str, folder: Path) -> Path:
    """Where a picture lies once it has been fetched."""
    name = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()
    kind = re.search(r"\.(\w{1,5})(?:[?#]|$)", url, re.ASCII)
    return folder / name[:2] / (f"{name}.{kind[1].lower()}" if kind else name)


def download(url: str, folder: Path) -> Path:
    """The file that holds what lies at a URL; it is fetched once.

    Raises:
        DispError: it cannot be fetched, or has more than `MAX_BYTES` bytes.
    """
    file = cached(url, folder)
    if file.exists():
        return file
    try:
        check_address(url)
        opener = urllib.request.build_opener(_Checked)
        request = urllib.request.Request(url, headers={"User-Agent": "disp"})
        with opener.open(request, timeout=SECONDS) as answer:
            content = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise DispError(
            f"{shortened(url)} cannot be fetched ({shortened(str(error))}); download the picture and name the file"
        ) from None
    if len(content) > MAX_BYTES:
        raise DispError(f"{shortened(url)} has more than {MAX_BYTES:,} bytes; download a smaller picture")
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    return file
