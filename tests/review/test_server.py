"""The command: what it needs, what it refuses, and where it listens."""

import builtins
import json
import re
import socket
import sys

import pytest

pytest.importorskip("uvicorn", reason="the extra review is not installed")

from audit_folder import write_evidence

from disp import cli
from disp.review import server


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*options):
        monkeypatch.setattr(sys, "argv", ["disp", "review", *map(str, options), "--no-browser"])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_a_missing_package_is_named_with_the_extra(command, folder, monkeypatch, package):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "disp.review.app", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = command(folder)
    assert code == 2 and err.count("\n") == 1
    assert f"disp review needs the package {package}" in err and "pip install '.[review]' in a clone" in err


def test_a_folder_without_an_audit(command, tmp_path):
    code, _, err = command(tmp_path)
    assert code == 2 and f"{tmp_path}: no audit in this folder; give the folder that" in err


def test_nothing_is_flagged(command, folder):
    evidence = folder / "audit" / "evidence.jsonl"
    rows = [json.loads(line) for line in evidence.read_text(encoding="utf-8").splitlines()]
    write_evidence(evidence, [{**row, "flagged": False} for row in rows])
    code, out, _ = command(folder)
    assert code == 0 and "no row is flagged; there is nothing to decide" in out


def test_damaged_decisions_are_said_before_anything_is_served(command, folder):
    (folder / "decisions.jsonl").write_text('{"id": "row-8", "decision": "perhaps"}\n{"id": "row-9"')
    code, _, err = command(folder)
    assert code == 2 and "decisions.jsonl:1: the decision on 'row-8' must be yes, no or skip" in err


def test_a_port_that_is_taken_is_said(command, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = command(folder, "--port", taken.getsockname()[1])
    assert code == 2 and "is in use" in err and "--port" in err and err.count("\n") == 1


def test_this_machine_alone_is_listened_to(folder, monkeypatch):
    """Every address 127.x.y.z is this machine's; a server that listens to all networks answers under each."""
    reached = {}

    def run(self, sockets):
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", told[0])[1])
        for address in ("127.0.0.1", "127.0.0.2"):
            with socket.socket() as visitor:
                reached[address] = visitor.connect_ex((address, port)) == 0

    told = []
    monkeypatch.setattr("uvicorn.Server.run", run)
    server.serve(folder, port=0, browser=False, tell=told.append)
    assert reached == {"127.0.0.1": True, "127.0.0.2": False}
