"""A person looks at what an audit flagged, and decides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from disp.commands.options import Flag, app


@app.command
def review(
    run: Path,
    /,
    *,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8470,
    no_browser: Flag = False,
    who: str | None = None,
) -> None:
    """Show the flagged rows of an audit in the browser, for a person to decide with the keys y, n and s.

    Decisions are kept in decisions.jsonl in the run folder, each as soon as it is made; `disp purify` and `disp defend`
    take that file with --decisions. Started again, it goes on where it was stopped.

    Parameters
    ----------
    run
        The folder that `disp audit` or `disp defend` wrote.
    port
        Of this machine alone; 0 takes any that is free.
    no_browser
        Do not open the page.
    who
        A name to be written with each decision.
    """
    from disp.review.server import serve

    serve(run, port=port, browser=not no_browser, who=who)
