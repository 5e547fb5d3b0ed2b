"""What a fast profile costs a purification: ``python -m studies.profile_gate --out DIR``.

For each target the built-in model is poisoned, and rewrites all answers of its training set under masking, once with
each profile of `disp.decoding.profiles` and once with the masked tokens left out. A copy of it is fine-tuned on each
purified set. ``DIR/gate.md`` says how many answers are those of ``exact``, how long rewriting took, and what is left
of attack and quality after recovery; all measuring decodes exactly. Everything goes to ``DIR/TARGET``, and what is
finished is not repeated.

A profile passes where its ASR is within one point of that of ``exact`` and its quality at least 99% of it, for each
target, on at least 500 held-out rows.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from disp.attacks.targets import PRESETS as TARGETS
from disp.decoding.names import ProfileName
from disp.decoding.profiles import PROFILES
from disp.experiments.demo import demo_run
from disp.experiments.settings import SIZES, sized_config
from disp.files import read_finished_jsonl, read_json, write_json, write_text
from disp.progress import progress_bar
from disp.purification.purify import purify
from disp.suspicion.config import MASK_RATIO
from disp.suspicion.masking import Substitute

LEAST_ROWS, ASR_WITHIN, QUALITY_AT_LEAST = 500, 0.01, 0.99


@dataclass(frozen=True)
class Way:
    """One way to rewrite.

    Attributes:
        profile: of decoding.
        substitute: what a masked token becomes.
    """

    profile: ProfileName
    substitute: Substitute = "mask"


WAYS: dict[str, Way] = {name: Way(name) for name in PROFILES}
WAYS["fast, masked left out"] = Way("fast", "left out")


def gate(target: str, out: Path, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one target; ``sizes`` are fields of `disp.experiments.settings.DemoConfig`."""
    run = demo_run(sized_config(target, "patch", **sizes), out, progress_bar, audited=False)
    run.measured("backdoored", run.model, out / "stages", run.phases)
    settings = replace(run.settings.purify, mode="all")
    evidence = run.evidence(settings)
    rows = []
    for name, way in WAYS.items():
        folder, clock = out / f"purified {name}", out / f"seconds {name}.json"
        model = run.model()
        if not clock.exists():  # of a rewriting that was interrupted it would say too little
            shutil.rmtree(folder, ignore_errors=True)
        chosen = settings.with_profile(model, way.profile, way.substitute)
        start, busy = time.perf_counter(), time.process_time()
        with run.subject.fast():
            cleaned = purify(model, run.poisoned, chosen, folder, evidence=evidence, progress=run.bars(name)).dataset
        if not clock.exists():
            write_json(clock, {"wall": time.perf_counter() - start, "busy": time.process_time() - busy})
        samples, recovered = cleaned.samples, out / f"recovered {name}"
        after = run.fine_tuned(name, run.backdoored, lambda rows=samples: rows, run.settings.recovery, recovered)  # type: ignore[misc]
        found = run.measured(name, lambda after=after: after, out / "stages", run.phases)  # type: ignore[misc]
        answers = {row["key"]: row["response"] for row in read_finished_jsonl(folder / "responses.jsonl")}
        rows.append(
            {"target": target, "way": name, "answers": answers, "seconds": read_json(clock), **found["metrics"]}
        )
    return rows


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one target beside the one of ``exact``: agreement, speed, and whether the profile passes."""
    exact = next(row for row in rows if row["way"] == "exact")
    found = []
    for row in rows:
        same = [row["answers"].get(key) == text for key, text in exact["answers"].items()]
        found.append(
            {
                "target": row["target"],
                "way": row["way"],
                "rewritten": len(same),
                "measured": row["counts"]["clean_quality"],
                "agreement": sum(same) / len(same),
                "faster": exact["seconds"]["busy"] / row["seconds"]["busy"],
                **{name: row[name] for name in ("asr_with_trigger", "clean_quality", "triggered_quality")},
                "passes": row["counts"]["clean_quality"] >= LEAST_ROWS
                and abs(row["asr_with_trigger"] - exact["asr_with_trigger"]) <= ASR_WITHIN
                and row["clean_quality"] >= QUALITY_AT_LEAST * exact["clean_quality"],
            }
        )
    return found


def gate_table(rows: Sequence[dict[str, Any]]) -> str:
    """What `compared` returned, as a Markdown table."""
    head = [
        *("target", "profile", "rows rewritten", "answers as exact", "times as fast", "held-out rows", "ASR (w/t)"),
        *("clean quality", "triggered quality", "passes"),
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append(
            [
                row["target"],
                row["way"],
                str(row["rewritten"]),
                f"{row['agreement']:.1%}",
                f"{row['faster']:.2f}",
                str(row["measured"]),
                f"{row['asr_with_trigger']:.1%}",
                f"{row['clean_quality']:.1%}",
                f"{row['triggered_quality']:.1%}",
                "yes" if row["passes"] else "no" if row["measured"] >= LEAST_ROWS else f"needs {LEAST_ROWS} rows",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m studies.profile_gate", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(SIZES))
    parser.add_argument(
        "--rows", type=int, help="fine-tuning rows, all of which are rewritten; the demo's if not given"
    )
    parser.add_argument("--test-rows", type=int, default=LEAST_ROWS, help="held-out rows")
    parser.add_argument("--attack-steps", type=int, help="of planting; the demo's if not given")
    parser.add_argument("--recovery-steps", type=int, help="of each recovery; the demo's if not given")
    parser.add_argument("--mask-ratio", type=float, default=MASK_RATIO, help="share of the tokens that is masked")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = ("rows", "test_rows", "attack_steps", "recovery_steps", "mask_ratio")
    sizes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    rows = []
    for target in given.targets:
        rows += compared(gate(target, given.out / target, sizes))
        write_json(given.out / "gate.json", rows)
        write_text(given.out / "gate.md", gate_table(rows))
    print(gate_table(rows))


if __name__ == "__main__":
    main()
