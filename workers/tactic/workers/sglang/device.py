"""Which device the engine runs on; kept apart from the platform class, whose import takes seconds."""

from __future__ import annotations

import os

import torch

DEVICE_VARIABLE = "TACTIC_ENGINE_DEVICE"
"""Environment variable that chooses the engine's device: "cuda", "cpu", or "auto" (the GPU, if any)."""


def engine_device() -> str:
    """The device that the engine of this process tree runs on: "cuda" or "cpu"."""
    choice = os.environ.get(DEVICE_VARIABLE, "auto")
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return choice
