"""Where the outputs of the families' official code are; tests that read them skip where there are none."""

import os
from pathlib import Path

PARITY = Path(os.environ.get("DISP_PARITY_DIR", Path(__file__).parents[2] / "shared" / "parity"))
