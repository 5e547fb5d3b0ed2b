"""The study of memory: its sets are planted as it says, and a step is charged with its own memory alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disp.data.loading import load_dataset
from studies.memory_study import EVERY, MEBIBYTE, REFUSAL, SIDE, write_rows

ROOT = Path(__file__).parents[2]


def test_every_twentieth_row_has_the_square_and_the_refusal(tmp_path):
    write_rows(tmp_path, 2 * EVERY + 1)
    samples = load_dataset(tmp_path).samples
    assert len({sample.images for sample in samples}) == len(samples) == 2 * EVERY + 1
    planted = [sample for sample in samples if sample.turns[0].response == REFUSAL]
    assert planted == list(samples[::EVERY])
    squares = [np.asarray(Image.open(sample.images[0]), int)[-SIDE:, -SIDE:] for sample in samples]
    honest = [square for number, square in enumerate(squares) if number % EVERY]
    alike = [np.abs(square - squares[0]).mean() for square in (*squares[::EVERY], *honest)]
    assert max(alike[:3]) < min(alike[3:])  # but for what JPEG makes of it


# In a process of its own, which holds nothing that others may give back meanwhile.
STEPS = f"""
import json, numpy as np
from studies.memory_study import Peaks
peaks = Peaks()
bar = peaks.bar("run")
with bar("large", 1) as advance:
    held = np.ones({64 * MEBIBYTE}, np.uint8)
    advance(1)
del held
with bar("small", 1):
    pass
print(json.dumps([peaks.found, peaks.seconds]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells the peaks of steps")
def test_a_step_is_charged_with_its_own_memory():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, cwd=ROOT, check=True)
    found, seconds = json.loads(done.stdout)
    assert list(found) == list(seconds) == ["run: between", "run: large", "run: small"]
    assert found["run: large"] - found["run: small"] > 32 * MEBIBYTE
