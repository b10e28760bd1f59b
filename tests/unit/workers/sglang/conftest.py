"""SGLang, imported once and late: it takes seconds, and warns of what it does not find."""

import warnings

import pytest


@pytest.fixture(scope="session")
def sglang() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sglang.srt.layers.attention.torch_native_backend
        import sglang.srt.mem_cache.memory_pool  # noqa: F401
