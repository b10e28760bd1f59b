"""Hatch build hook: generates the gRPC stubs beside the .proto files, for wheels and editable installs."""

from importlib import resources
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # untyped
    """Runs protoc over proto/ before the build collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates `*_pb2.py`, `*_pb2_grpc.py` and their `.pyi`; fails the build if protoc does."""
        root = Path(self.root, "proto")
        sources = sorted(str(path) for path in root.rglob("*.proto"))
        well_known = str(resources.files("grpc_tools") / "_proto")
        outputs = [f"--{kind}_out={root}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
        if protoc.main(["protoc", f"-I{root}", f"-I{well_known}", *outputs, *sources]) != 0:
            raise RuntimeError(f"protoc failed on {root}; see its messages above")
