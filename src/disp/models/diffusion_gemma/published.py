"""What is published of DiffusionGemma: its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of this family."""
    return config.get("model_type") == "diffusion_gemma"
