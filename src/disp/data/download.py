"""Fetching a picture from the network, only where it was asked for."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import re
import socket
import time
import urllib.request
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from disp.errors import DispError
from disp.files import write_atomically
from disp.words import shortened

# A photograph of 64 million pixels as JPEG has about 30 MB; nothing larger would be opened.
MAX_BYTES = 50_000_000
# How long a server may say nothing, and how long it may take over an answer; for 50 MB that is 170 kB a second.
SECONDS = 30.0
SECONDS_IN_ALL = 300.0


class _Until(io.RawIOBase):
    """What a socket receives up to a time: a server that sends a byte now and then is never silent for long."""

    def __init__(self, received: socket.SocketIO, sock: socket.socket, end: float):
        self._received, self._socket, self._end = received, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left > 0:
            self._socket.settimeout(min(SECONDS, left))
            try:
                return self._received.readinto(buffer)
            except TimeoutError:
                if left > SECONDS:
                    raise
        raise TimeoutError(f"it takes longer than {SECONDS_IN_ALL:g} seconds")

    def close(self) -> None:
        self._received.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer that has an end; its headers count as well."""

    def __init__(self, sock: socket.socket, *arguments: Any, **given: Any):
        super().__init__(sock, *arguments, **given)
        self.fp.close()
        received = sock.makefile("rb", buffering=0)
        self.fp = io.BufferedReader(_Until(received, sock, time.monotonic() + SECONDS_IN_ALL))


class _Http(HTTPConnection):
    """A connection that asks nothing of a machine in a private network.

    A name may lead elsewhere when it is looked up a second time, to connect, than when `check_address` looked it up.
    """

    response_class = _Answer
    proxied = False

    def connect(self) -> None:
        super().connect()
        if not self.proxied:  # a proxy lies where the user has it, and connects by itself
            try:
                check_public(self.sock.getpeername())
            except ValueError:
                self.close()
                raise


class _Https(HTTPSConnection, _Http):
    """The same; the machine is looked at before anything is encrypted for it."""


def _connection(kind: type[_Http], proxied: bool, *arguments: Any, **given: Any) -> _Http:
    made = kind(*arguments, **given)
    made.proxied = proxied
    return made


class _OverHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(_connection, _Http, req.has_proxy()), req)


class _OverHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        # The library has no public name for the host behind a proxy.
        proxied = req.has_proxy() or bool(getattr(req, "_tunnel_host", None))
        return self.do_open(partial(_connection, _Https, proxied), req)


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
        check_public(address)


def check_public(address: tuple[Any, ...]) -> None:
    """Make sure that an address, as sockets have it, is none of a private network.

    Raises:
        ValueError: it is.
    """
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
        DispError: it cannot be fetched, takes longer than `SECONDS_IN_ALL`, or has more than `MAX_BYTES` bytes.
    """
    file = cached(url, folder)
    if file.exists():
        return file
    try:
        check_address(url)
        opener = urllib.request.build_opener(_Checked, _OverHttp, _OverHttps)
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
