"""What the front end must not drag in."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "sglang", "ray")


def test_front_end_imports_no_engine() -> None:
    code = f"import sys, tactic.service.frontend.app; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
