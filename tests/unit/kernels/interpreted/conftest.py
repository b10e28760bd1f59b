"""Kernels against their definitions: in Triton's interpreter (TRITON_INTERPRET=1), or on a GPU."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            if not interpreted and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip("needs TRITON_INTERPRET=1 or a GPU"))
            # The interpreter turns its 1-element arrays into loop bounds.
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
            # An empty part's log-sum-exp is -inf.
            item.add_marker(
                pytest.mark.filterwarnings("ignore:divide by zero encountered in log:RuntimeWarning")
            )


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
