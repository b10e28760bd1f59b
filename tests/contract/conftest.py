"""The running system that these tests ask."""

from typing import Any

import pytest
from contract import Api


@pytest.fixture(scope="session")
async def api(stack: Any) -> Api:
    return Api(stack.channel)
