"""What a conversation tells the model, turn by turn."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tactic.service.cli._conversation import Ask, Conversation
from tactic.service.client import (
    Event,
    Message,
    SamplingOptions,
    TacticOptions,
    TextDelta,
    UnavailableError,
)

FAILURE = UnavailableError(grpc.StatusCode.UNAVAILABLE, "no worker")


class Client:
    """Answers with a number of pieces of text, and then an error if there is one."""

    def __init__(self) -> None:
        self.roles: list[list[str]] = []
        self.pieces = 1
        self.failure: BaseException | None = None

    async def chat(self, messages: list[Message], **options: Any) -> AsyncIterator[Event]:
        self.roles.append([message.role for message in messages])
        for _ in range(self.pieces):
            yield TextDelta("x", (1,), ())
        if self.failure is not None:
            raise self.failure


def conversation(client: Any, session: str) -> Conversation:
    return Conversation(client, Ask(session, "Be kind.", SamplingOptions(), TacticOptions()))


@pytest.mark.parametrize("failure", [FAILURE, asyncio.CancelledError()])
@pytest.mark.parametrize(("pieces", "again"), [(0, ["system", "user"]), (1, ["user"])])
async def test_system_message_is_told_until_the_session_has_it(
    failure: BaseException, pieces: int, again: list[str]
) -> None:
    client = Client()
    talk = conversation(client, "s")
    client.pieces, client.failure = pieces, failure
    with pytest.raises(type(failure)):
        await talk.ask("Hi")
    client.pieces, client.failure = 0, None
    await talk.ask("Hi")
    await talk.ask("More")
    assert client.roles == [["system", "user"], again, ["user"]]


async def test_system_message_is_told_each_time_without_a_session() -> None:
    client = Client()
    talk = conversation(client, "")
    for _ in range(2):
        await talk.ask("Hi")
    assert client.roles == [["system", "user"]] * 2
