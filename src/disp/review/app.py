"""The pages of `disp review`: one flagged row at a time, and a form with three buttons.

The pages run one script, ours, that turns keys into presses of buttons; without it the buttons work as well. Whatever
comes from the data is escaped by `disp.report.templates`. Only this machine's browser is answered: the Host header must
name this server, so that a page of another name that is made to point here gets nothing; and a decision needs a token
that only our own pages hold.
"""

from __future__ import annotations

import hmac
import secrets
import shlex
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from disp.data.decisions import WORDS
from disp.errors import DispError
from disp.report.figures import Figure, candidate_figure
from disp.report.samples import sample_view
from disp.report.templates import template
from disp.review.run import Flagged, Run

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # "no-referrer" would take the origin from a form as well
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# A form has three short fields.
MAX_BODY = 4096
SAID = {"yes": "poisoned", "no": "honest", "skip": "skipped"}


def make_app(run: Run, port: int) -> ASGIApp:
    """The application.

    Args:
        run: what is reviewed.
        port: that it is served on.
    """
    pages = _Pages(run, secrets.token_urlsafe(32))
    routes = [
        Route("/", pages.start),
        Route("/row/{number:int}", pages.row, methods=["GET"]),
        Route("/row/{number:int}", pages.decide, methods=["POST"]),
        Route("/done", pages.done),
        *[Route(f"/{name}", _file(room, name, kind)) for room, name, kind in _FILES],
    ]
    errors: Any = {DispError: _problem, OSError: _problem}
    return _Guard(Starlette(routes=routes, exception_handlers=errors), port)


class _Guard:
    """Refuses what does not come from a page of ours on this machine, and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, port: int):
        names = ("127.0.0.1", "localhost")
        self.app = app
        self.hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        refusal = self._refusal(Request(scope))
        answer = self.app if refusal is None else PlainTextResponse(f"{refusal}\n", 403)
        await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> str | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return "disp review answers to 127.0.0.1 and localhost alone"
        if request.method in ("GET", "HEAD"):
            return None
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if origin is not None and origin.lower().removeprefix("http://") not in self.hosts:
            return "a decision must come from a page of disp review"
        if site is not None and site != "same-origin":
            return "a decision must come from a page of disp review"
        return None


class _Pages:
    """The pages of one run."""

    def __init__(self, run: Run, token: str):
        self.run, self.token = run, token
        self.phrases = {index: cluster["phrase"] for index, cluster in enumerate(run.audit["clusters"])}

    def start(self, request: Request) -> Response:
        """The first row that is not decided."""
        return RedirectResponse(self._next(0), 303)

    def row(self, request: Request) -> Response:
        """One row."""
        number = request.path_params["number"]
        row = self._row(number)
        if row is None:
            return RedirectResponse("/", 303)
        decided = self.run.decisions()
        evidence = self.run.evidence(row)
        page = _template("row.html.jinja").render(
            number=number,
            total=len(self.run.rows),
            row=row,
            sample=sample_view(self.run.folder, evidence, "row", self.phrases),
            candidate=self._candidate(evidence.get("cluster")),
            said=SAID.get(decided.get(row.id, "")),
            token=self.token,
            **self._counts(decided),
        )
        return HTMLResponse(page)

    async def decide(self, request: Request) -> Response:
        """Write a decision down, and tell where to go on."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return PlainTextResponse("the form is too large\n", 413)
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        if not hmac.compare_digest(form.get("token", "").encode(), self.token.encode()):
            return PlainTextResponse("disp review was started again since this page was loaded; load it again\n", 403)
        number = request.path_params["number"]
        row = self._row(number)
        if row is None or form.get("row") != row.mark:
            return PlainTextResponse("the rows have changed since this page was loaded; load it again\n", 409)
        if form.get("decision") not in WORDS:
            return PlainTextResponse("a decision is yes, no or skip\n", 400)
        await run_in_threadpool(self.run.decide, row, form["decision"])
        target = await run_in_threadpool(self._next, number)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"next": target})
        return RedirectResponse(target, 303)

    def done(self, request: Request) -> Response:
        """What was decided, and what to do with it."""
        decided = self.run.decisions()
        model, data = (shlex.quote(str(self.run.audit[name])) for name in ("model", "data"))
        log = shlex.quote(str(self.run.log))
        page = _template("done.html.jinja").render(
            rows=[(number, row, SAID.get(decided.get(row.id, ""))) for number, row in enumerate(self.run.rows, 1)],
            total=len(self.run.rows),
            log=str(self.run.log),
            commands=[
                f"disp purify {model} {data} --out purified --decisions {log}",
                f"disp defend {model} {data} --out defence --decisions {log}",
            ],
            **self._counts(decided),
        )
        return HTMLResponse(page)

    def _candidate(self, cluster: object) -> Figure | None:
        """The trigger candidate that goes with a row's phrase."""
        clusters = self.run.audit["clusters"]
        if not isinstance(cluster, int) or not 0 <= cluster < len(clusters) or not clusters[cluster].get("candidate"):
            return None
        return candidate_figure(self.run.folder, clusters[cluster]["candidate"], clusters[cluster].get("box"))

    def _row(self, number: int) -> Flagged | None:
        return self.run.rows[number - 1] if 1 <= number <= len(self.run.rows) else None

    def _next(self, number: int) -> str:
        following = self.run.undecided_after(number)
        return "/done" if following is None else f"/row/{following}"

    def _counts(self, decided: dict[str, str]) -> dict[str, Any]:
        words = [decided[row.id] for row in self.run.rows if row.id in decided]
        return {"decided": len(words), "counts": {SAID[word]: words.count(word) for word in WORDS}}


def _problem(request: Request, error: Exception) -> Response:
    """An error in one line; the script shows it on the page."""
    if isinstance(error, OSError):
        told = f"not saved: {error.filename or ''}: {error.strerror or error}".replace(": :", ":")
        return PlainTextResponse(f"{told}\n", 507)
    return PlainTextResponse(f"{' '.join(str(error).splitlines())}\n", 500)


# Room, name and kind of what the pages load.
_FILES = (
    ("disp.report", "report.css", "text/css"),
    ("disp.review", "review.css", "text/css"),
    ("disp.review", "review.js", "text/javascript"),
)


def _file(room: str, name: str, kind: str) -> Any:
    content = _content(room, name)
    return lambda request: Response(content, media_type=kind)


def _content(room: str, name: str) -> str:
    return resources.files(room).joinpath(name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> jinja2.Template:
    return template(_content("disp.review", name))
