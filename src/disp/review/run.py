"""The flagged rows of an audit's folder, and what was decided of them so far."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disp.auditing.wording import why_flagged
from disp.data.decisions import Decision, append_decision, latest, mend_log
from disp.errors import DispError
from disp.files import checked_row
from disp.report.inputs import all_evidence, read_audit


@dataclass(frozen=True)
class Flagged:
    """A flagged row.

    Attributes:
        id: of the row.
        suspicion: in nats.
        phrase: what it is flagged for; empty if the audit does not say it.
        reason: why, in words.
        place: where it begins in ``evidence.jsonl``, in bytes.
    """

    id: str
    suspicion: float
    phrase: str
    reason: str
    place: int

    @property
    def mark(self) -> str:
        """Stands for the id in a form: an id may hold anything."""
        return hashlib.sha256(self.id.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass
class Run:
    """What is reviewed.

    Attributes:
        folder: of the audit.
        log: the file of decisions, which is only ever appended to.
        audit: ``audit.json``.
        rows: the flagged rows, the most suspicious first.
        who: the person who decides, to be written down; None for nobody.
    """

    folder: Path
    log: Path
    audit: dict[str, Any]
    rows: tuple[Flagged, ...]
    who: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: tuple[tuple[int, int], dict[str, str]] | None = None

    def evidence(self, row: Flagged) -> dict[str, Any]:
        """The row's line of ``evidence.jsonl``.

        Raises:
            DispError: the file has changed since.
        """
        file = self.folder / "evidence.jsonl"
        with file.open("rb") as opened:
            opened.seek(row.place)
            line = opened.readline()
        value = checked_row(line)
        if value is None or value.get("id") != row.id:
            raise DispError(f"{file} has changed; start `disp review` again")
        return value

    def decisions(self) -> dict[str, str]:
        """By id the last decision. Another process may write to the file as well."""
        with self._lock:
            try:
                status = self.log.stat()
            except FileNotFoundError:
                return {}
            state = (status.st_size, status.st_mtime_ns)
            if self._seen is None or self._seen[0] != state:
                self._seen = state, latest(self.log)
            return self._seen[1]

    def decide(self, row: Flagged, word: str) -> None:
        """Write a decision down, to the disk.

        Raises:
            OSError: it cannot be written; nothing of it stays.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            append_decision(self.log, Decision(row.id, word, self.who, now))

    def undecided_after(self, number: int) -> int | None:
        """The next row that is not decided, from the given number on and round to it again; numbers count from 1."""
        decided = self.decisions()
        order = [*range(number + 1, len(self.rows) + 1), *range(1, number + 1)]
        return next((each for each in order if self.rows[each - 1].id not in decided), None)


def open_run(folder: Path, who: str | None = None) -> Run:
    """The flagged rows of a run folder.

    Args:
        folder: of an audit, or of a defence, whose audit of the given model it is then.
        who: the person who decides.

    Raises:
        DispError: there is no audit in it, a file of it is damaged, or decisions cannot be written to it.
    """
    audited = folder if (folder / "audit.json").exists() else folder / "audit"
    if not (audited / "audit.json").exists():
        raise DispError(f"{folder}: no audit in this folder; give the folder that `disp audit` or `disp defend` wrote")
    audit = read_audit(audited)
    why = why_flagged(audit["clusters"])
    rows = [
        Flagged(str(row["id"]), float(row["suspicion"]), *why.get(str(row["id"]), ("", "")), place)
        for place, row in all_evidence(audited / "evidence.jsonl", audit["samples"])
        if row["flagged"]
    ]
    log = folder / "decisions.jsonl"
    if not os.access(log if log.exists() else folder, os.W_OK):
        raise DispError(f"{log}: may not be written to; copy the run folder to where decisions can be kept")
    mend_log(log)
    run = Run(audited, log, audit, tuple(sorted(rows, key=lambda row: -row.suspicion)), who)
    run.decisions()
    return run
