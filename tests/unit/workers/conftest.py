from collections.abc import Callable

import pytest
from pools import Pools


@pytest.fixture
def make_pools() -> Callable[..., Pools]:
    """Makes pools of a size of one's own."""
    return Pools


@pytest.fixture
def pools() -> Pools:
    return Pools()
