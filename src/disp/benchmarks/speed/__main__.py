"""``python -m disp.benchmarks.speed --out DIR``: measure, print every row, and write ``DIR/NAME.json``.

With ``--only`` some groups are measured, and the file keeps what it holds of the others.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from disp.benchmarks.speed.cases import GROUPS, BenchConfig, measure, to_json
from disp.benchmarks.speed.measuring import hardware
from disp.benchmarks.speed.model import BenchSizes
from disp.files import write_json

SMALL = BenchConfig(
    BenchSizes(layers=2, width=32, heads=2, hidden=48, vocabulary=64, visual=12, text=4, response=16),
    rounds=1,
    probes=(1, 2),
    visual=(8, 16),
    response=(8,),
    rows=(1, 2),
)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m disp.benchmarks.speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--name", default="speed-cpu", help="of the file")
    parser.add_argument("--rounds", type=int, default=BenchConfig.rounds, help="of saliency and training")
    parser.add_argument("--decoding-rounds", type=int, default=BenchConfig.decoding_rounds, help="of whole answers")
    parser.add_argument("--growth-rounds", type=int, default=BenchConfig.growth_rounds, help="of single steps")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to measure")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the command")
    given = parser.parse_args()
    # Ratios do not depend on it, and one thread disturbs others least.
    torch.set_num_threads(1)
    if given.small:
        config = SMALL
    else:
        config = BenchConfig(
            rounds=given.rounds,
            decoding_rounds=given.decoding_rounds,
            growth_rounds=given.growth_rounds,
            device=given.device,
        )
    file = given.out / f"{given.name}.json"
    done: set[str] = set()
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    for row in measure(config, given.only):
        if row.group not in done:  # what an earlier run found of it
            done.add(row.group)
            rows = [each for each in rows if each["group"] != row.group]
        rows.append(asdict(row))
        peak = "" if row.peak_bytes is None else f"  {row.peak_bytes / 2**20:8.1f} MiB"
        same = "" if row.same is None else f"  {row.same:.0%} of the tokens"
        print(f"{row.group:16s} {row.name:42s} {row.busy:9.3f} s  {row.ratio:7.3f}{peak}{same}", flush=True)
        write_json(file, to_json(config, rows, hardware(config.device)))


if __name__ == "__main__":
    main()
