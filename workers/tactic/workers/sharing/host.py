"""Which processes can share memory: those of one running kernel that see each other's process ids."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def host_identity() -> str:
    """The same for two processes only if a process id means the same to both."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
