"""Modules of this folder as SGLang plug-ins, without an installation."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plugged_in(module: str) -> Iterator[None]:
    """SGLang's processes that are started inside call `register()` of a module of this folder.

    They are spawned, and take `sys.path` from this process, not from the environment.
    """
    with tempfile.TemporaryDirectory(prefix="tactic-plugin-") as folder:
        about = Path(folder, f"{module}-0.dist-info")
        about.mkdir()
        name = module.replace("_", "-")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        (about / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{module} = {module}:register\n")
        paths = [folder, str(Path(__file__).parent)]
        sys.path[:0] = paths
        try:
            yield
        finally:
            for path in paths:
                sys.path.remove(path)
