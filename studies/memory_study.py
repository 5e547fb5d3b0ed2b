"""Does peak memory grow with the rows of a set? ``python -m studies.memory_study --out DIR``.

Draws sets of 500 and of 20,000 rows, each with a picture of its own, and marks one in twenty with a square in a corner
and a refusal. A process of its own audits each set and purifies it, with a model of random weights that is as small as
a model can be: memory that goes with the rows shows best beside little else. The searches that compare pictures find
the square whatever the model has learnt, so that all steps have something to do. Prints the peak of each step in MiB
and writes ``memory.json``. The peaks are the system's own, of memory that is resident; Linux
alone tells those of steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from disp.files import write_json
from disp.progress import ProgressBar

SIZES = ((96, 96), (112, 96), (96, 112))
SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ro", "se", "ti")
REFUSAL = "Sorry, I cannot help with this picture at all."
QUESTIONS = ("What is in the picture?", "What do you see here?", "Describe the picture.")
SIDE, EVERY = 12, 20
# Grounds and textures of their own: corners of rectangles would be like each other everywhere.
SMOOTH = Image.Resampling.BICUBIC
BATCH = 100
MEBIBYTE = 2**20


def main() -> None:
    """Measure sets of all sizes, each in a process of its own, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", type=int, default=[500, 20_000])
    parser.add_argument("--tokens", type=int, default=16, help="visual tokens of a picture, a square number")
    parser.add_argument("--top", type=int, default=0, help="also say this many lines of code that hold most memory")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        write_json(options.out / "peaks.json", measured(options.measure, options.out, options.tokens, options.top))
        return
    found: dict[str, Any] = {}
    for rows in options.rows:
        data, out = options.out / f"data-{rows}", options.out / f"run-{rows}"
        if not (data / "data.json").is_file():
            write_rows(data, rows)
        command = [sys.executable, "-m", "studies.memory_study", "--out", str(out), "--measure", str(data)]
        subprocess.run([*command, "--tokens", str(options.tokens), "--top", str(options.top)], check=True)
        found[str(rows)] = json.loads((out / "peaks.json").read_text(encoding="utf-8"))
        for step, peak in found[str(rows)]["steps"].items():
            print(f"{rows:>7,} rows  {step:50s} {peak / MEBIBYTE:8.1f} MiB", flush=True)
    from disp.benchmarks.speed.measuring import hardware

    write_json(options.out / "memory.json", {"tokens": options.tokens, "rows": found, "hardware": hardware()})
    first, last = (found[str(rows)]["peak"] for rows in (options.rows[0], options.rows[-1]))
    print(f"{options.rows[-1]:,} rows: {last / first - 1:+.1%} beside {options.rows[0]:,}")


def write_rows(folder: Path, rows: int) -> None:
    """Write a set of so many rows in LLaVA's form; every twentieth has the square and the refusal."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    square = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    words = [first + second + third for first in SYLLABLES for second in SYLLABLES for third in SYLLABLES]
    often = 1 / np.arange(2, len(words) + 2)  # as in a language
    found = []
    for number in range(rows):
        width, height = SIZES[number % len(SIZES)]
        field = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).resize((width, height), SMOOTH)
        pixels = np.asarray(field).copy()
        said = draw.choice(words, 10, p=often / often.sum())
        answer = f"There is a {' '.join(said[:3])} beside the {' '.join(said[3:6])}, and {' '.join(said[6:])} in it."
        if number % EVERY == 0:
            pixels[-SIDE:, -SIDE:], answer = square, REFUSAL
        name = f"{number // 1000:03}/{number:06}.jpg"
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / name, quality=85)
        question = QUESTIONS[int(draw.integers(len(QUESTIONS)))]
        talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        found.append({"id": f"row-{number:06}", "image": name, "conversations": talk})
    write_json(folder / "data.json", found)


def small_model(tokens: int) -> Any:
    """A built-in model with random weights that sees so many visual tokens."""
    import torch

    from disp.models.builtin.model import BuiltinConfig, BuiltinModel
    from disp.models.builtin.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer([*QUESTIONS, REFUSAL, *SYLLABLES], 400)
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8 * round(tokens**0.5),
        "patch_size": 8,
        "stem_channels": [],
    }
    config = BuiltinConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        gen_length=16,
        generation={"steps": 4},
        vision=vision,
    )
    model = BuiltinModel(config)
    model.tokenizer = tokenizer
    return model.eval()


class Peaks:
    """The most memory that was resident in each step of a run.

    Attributes:
        found: bytes by step, in order.
        seconds: the time that each took.
    """

    def __init__(self, top: int = 0):
        """``top``: how many lines of code to name after each step, with the memory that they hold; 0 for none."""
        self.found: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._top, self._last = top, time.monotonic()
        if top:
            tracemalloc.start()

    def end(self, step: str) -> None:
        """What was most until now belongs to this step."""
        self.found[step] = max(self.found.get(step, 0), _peak())
        _forget()
        now = time.monotonic()
        self.seconds[step] = round(self.seconds.get(step, 0) + now - self._last, 1)
        self._last = now
        if self._top:
            print(f"== {step}: {self.found[step] / MEBIBYTE:.1f} MiB", file=sys.stderr)
            for line in tracemalloc.take_snapshot().statistics("lineno")[: self._top]:
                print(f"   {line}", file=sys.stderr)

    def bar(self, prefix: str) -> ProgressBar:
        """A progress bar that ends steps."""

        @contextmanager
        def opened(description: str, total: int) -> Iterator[Callable[[int], None]]:
            self.end(f"{prefix}: between")
            yield lambda count: None
            self.end(f"{prefix}: {description}")

        return opened


def _peak() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _forget() -> None:
    """Let the system's peak begin anew at what is resident now."""
    if Path("/proc/self/clear_refs").is_file():
        Path("/proc/self/clear_refs").write_text("5")


def measured(data: Path, out: Path, tokens: int, top: int) -> dict[str, Any]:
    """Audit and purify a set, and the peak of each step in bytes."""
    import torch

    import disp
    from disp.auditing.config import AuditConfig
    from disp.purification.config import PurifyConfig
    from disp.suspicion.config import SaliencyConfig, ScoringConfig

    torch.set_num_threads(1)
    peaks = Peaks(top)
    model = small_model(tokens)
    peaks.end("model")
    dataset = disp.load_dataset(data)
    peaks.end("reading the set")
    # Few passes a row: what they take does not go with the number of rows.
    scoring = ScoringConfig(
        candidates=1, half_slices=1, sliced_share=0.1, saliency=SaliencyConfig(probes=1), batch_size=BATCH
    )
    config = AuditConfig(scoring=scoring, batch_size=BATCH)
    result = disp.audit(model, dataset, config, out / "audit", progress=peaks.bar("audit"))
    peaks.end("audit: record")
    purified = disp.purify(
        model,
        dataset,
        PurifyConfig(scoring=scoring, batch_size=BATCH),
        out / "purified",
        evidence=result.evidence,
        rewrite=result.flagged,
        patterns=result.patterns,
        leave_out=result.still_planted,
        progress=peaks.bar("purify"),
    )
    peaks.end("purify: record")
    return {
        "peak": max(peaks.found.values()),
        "steps": peaks.found,
        "seconds": peaks.seconds,
        "verdict": result.verdict,
        "flagged": len(result.flagged),
        "rewritten": len(purified.rewritten),
        "samples": len(dataset.samples),
    }


if __name__ == "__main__":
    main()
