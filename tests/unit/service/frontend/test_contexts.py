"""Appended contexts: their tokens, their prefill, and streams that break."""

import asyncio
from typing import Any

from contract import refused
from scripted_workers import ScriptedWorker

BOOK = ("Grüße an die Welt, said the 1st fox; 你好 to you, too. " * 40).encode()


def expected_log(system: Any, text: bytes) -> list[int]:
    opening, _ = system.template.open_context("", 0)
    return list(opening + system.tokenizer.encode(text.decode(), special=False))


async def prefilled(worker: ScriptedWorker, count: int = 1) -> list[list[int]]:
    async with asyncio.timeout(20):
        while len(worker.prefills) < count:
            await asyncio.sleep(0.005)
    return [list(request.token_ids) for request in worker.prefills]


async def test_context_is_logged_and_prefilled(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        pieces = [BOOK[i : i + 97] for i in range(0, len(BOOK), 97)]
        response = await front.append(session, *pieces)
        log = expected_log(system, BOOK)
        assert response.finished
        assert (response.bytes_accepted, response.tokens_appended) == (len(BOOK), len(log))
        assert await prefilled(worker) == [log]
        await front.answer(session, "Who?")
        assert list(worker.requests[0].token_ids) == log + system.prompt("Who?", "context")


async def test_prefill_can_be_declined(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front()
        declined, asked = await front.session(), await front.session()
        await front.append(declined, b"no", prefill=False)
        await front.append(asked, b"yes")
        assert await prefilled(worker) == [expected_log(system, b"yes")]


async def test_deleting_the_session_cancels_its_prefill(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0", gate=asyncio.Semaphore(0))) as system:
        front = await system.front()
        session = await front.session()
        await front.append(session, BOOK)
        await prefilled(worker)
        await front.delete(session)
        async with asyncio.timeout(20):
            await worker.cancelled.wait()


async def test_broken_stream_goes_on_at_another_front_end(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        one, other = await system.front(), await system.front()
        session = await one.session()
        # Breaks inside a word and inside a character.
        cut = BOOK.index("你".encode()) + 1
        first = await one.append(session, BOOK[:cut], append_id="a", last=False)
        assert not first.finished
        open_append = (await other.get(session)).append
        assert (open_append.append_id, open_append.next_offset) == ("a", cut)
        second = await other.append(session, BOOK[cut:], append_id="a", offset=cut)
        assert second.finished
        assert await prefilled(worker) == [expected_log(system, BOOK)]
        # The last answer was lost, and the client repeats itself.
        again = await one.append(session, BOOK[cut:], append_id="a", offset=cut)
        assert (again.finished, again.bytes_accepted) == (True, len(BOOK))
        assert again.session.token_count == second.session.token_count


async def test_finished_append_that_is_sent_again_adds_nothing(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        first = await front.append(session, b"one", append_id="a", prefill=False)
        second = await front.append(session, b"and two", append_id="b", prefill=False)
        for append_id, text, before in (("a", b"one", first), ("b", b"and two", second)):
            again = await front.append(session, text, append_id=append_id, prefill=False)
            assert (again.finished, again.bytes_accepted) == (True, len(text))
            assert again.tokens_appended == before.tokens_appended
            assert again.session.token_count == second.session.token_count


async def test_refused_chunk_leaves_those_before_it(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        refusal = await refused(front.append(session, b"one two ", b"\xff", append_id="a"))
        assert refusal.metadata == {"position": "8"}
        assert (await front.get(session)).append.next_offset == 8
        assert (await front.append(session, b"three", append_id="a", offset=8)).finished


async def test_context_that_outgrows_the_model_is_refused_where_it_does(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        refusal = await refused(front.append(session, b"x " * 1000, b"y " * 2000, append_id="a"))
        assert refusal.reason == "CONTEXT_TOO_LONG"
        assert (await front.get(session)).append.next_offset == 2000
        # What is there can be closed and talked about.
        await front.append(session, b"", append_id="a", offset=2000)
        assert (await front.answer(session))[-1].HasField("finished")


async def test_second_context_follows_an_answer(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        await front.append(session, b"one", prefill=False)
        await front.answer(session, "A?")
        await front.append(session, b"two", prefill=False)
        await front.answer(session, "B?")
        text = system.tokenizer._marking.decode(list(worker.requests[1].token_ids), skip_special_tokens=False)
        head = "<|begin|><|role|>system\none<|end|><|role|>user\nA?<|end|><|role|>assistant\n"
        tail = "<|end|><|role|>system\ntwo<|end|><|role|>user\nB?<|end|><|role|>assistant\n"
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(text) == len(head) + 8 + len(tail)
