"""Serving the review pages to this machine's browser."""

from __future__ import annotations

import contextlib
import errno
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

from disp.errors import DispError, install
from disp.review.run import open_run

HOST = "127.0.0.1"


def serve(
    folder: Path, *, port: int, browser: bool, who: str | None = None, tell: Callable[[str], None] = print
) -> None:
    """Serve the flagged rows of a run folder until the process is interrupted.

    Args:
        folder: see `disp.review.run.open_run`.
        port: 0 for any that is free.
        browser: open the page in the machine's browser.
        who: the person who decides.
        tell: takes a line of output.

    Raises:
        DispError: the extra is missing, the folder holds no audit, or the port is taken.
    """
    try:
        import uvicorn

        from disp.review.app import make_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise DispError(f"disp review needs the package {error.name}: {install('review')}") from None
    run = open_run(folder, who)
    if not run.rows:
        tell(f"{run.folder}: no row is flagged; there is nothing to decide")
        return
    with _listening(port) as opened:
        port = opened.getsockname()[1]
        address = f"http://{HOST}:{port}/"
        tell(f"{len(run.rows)} flagged rows: {address}  (Ctrl-C ends; decisions are kept in {run.log})")
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            make_app(run, port),
            log_level="warning",
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
    decided = run.decisions()
    count = sum(row.id in decided for row in run.rows)
    tell(f"{count} of {len(run.rows)} rows decided" + (f"; use them with --decisions {run.log}" if count else ""))


def _listening(port: int) -> socket.socket:
    """A socket that this machine alone can reach."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen(16)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise DispError(
                f"port {port} of {HOST} is in use, perhaps by another review; choose one with --port"
            ) from None
        raise DispError(f"port {port} of {HOST} cannot be used ({error.strerror}); choose one with --port") from None
    return opened
