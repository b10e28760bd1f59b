"""Chat and completion on a running system with a real engine."""

import asyncio

import pytest
from contract import Api, text_of, tokens_of

from tactic.v1 import admin_pb2, generation_pb2, types_pb2

TEXT = "The Analytical Engine weaves algebraical patterns. " * 20
GREEDY = types_pb2.SamplingOptions(temperature=0, max_tokens=24, ignore_eos=True)


async def test_frames_of_a_turn(api: Api) -> None:
    session = await api.session(TEXT)
    frames = await api.frames(session, sampling=GREEDY, turn_id="t")
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    assert {frame.turn_id for frame in frames} == {"t"}
    assert [frame.WhichOneof("kind") for frame in (frames[0], frames[1], frames[-1])] == [
        "started",
        "delta",
        "finished",
    ]
    finished = frames[-1].finished
    assert finished.reason == types_pb2.FINISH_REASON_LENGTH
    assert len(tokens_of(frames)) == finished.usage.completion_tokens == 24
    assert finished.usage.prompt_tokens == frames[0].started.prompt_tokens
    assert finished.attention.decode_steps > 0
    now = await api.get(session)
    assert now.token_count == finished.usage.prompt_tokens + 24
    assert now.worker_id == frames[0].started.worker_id


async def test_second_turn_reuses_the_prefix(api: Api) -> None:
    session = await api.session(TEXT)
    first = (await api.frames(session, sampling=GREEDY))[-1].finished
    second = (await api.frames(session, "More", sampling=GREEDY))[-1].finished
    # All but the last token of the log, whose KV is computed when it is read.
    log = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prefix_tokens_reused >= log - 1


async def test_turn_can_be_replayed(api: Api) -> None:
    session = await api.session(TEXT)
    frames = await api.frames(session, sampling=GREEDY, turn_id="t")
    assert await api.frames(session, sampling=GREEDY, turn_id="t", resume_after_seq=2) == frames[2:]
    assert await api.frames(session, sampling=GREEDY, turn_id="t") == frames


async def test_cancelled_turn_goes_on_as_if_it_had_not_been(api: Api) -> None:
    long = types_pb2.SamplingOptions(temperature=0, max_tokens=120, ignore_eos=True)
    session, twin = await api.session(TEXT), await api.session(TEXT)
    call, seen = api.chat(session, sampling=long, turn_id="t"), []
    while len(tokens_of(seen)) < 10:
        seen.append(await call.read())
    call.cancel()
    async with asyncio.timeout(60):
        while (await api.get(session)).active_turn_id:
            await asyncio.sleep(0.01)
    rest = await api.frames(session, sampling=long, turn_id="t", resume_after_seq=seen[-1].seq)
    assert [frame.seq for frame in seen + rest] == list(range(1, len(seen + rest) + 1))
    assert len(tokens_of(seen + rest)) == 120
    assert (await api.get(session)).turn_count == 1
    uncut = await api.frames(twin, sampling=long)
    # What is generated again comes from a prefill instead of decode steps; at P = 0.9 the rest may differ.
    assert tokens_of(seen) == tokens_of(uncut)[: len(tokens_of(seen))]


async def test_stop_string_is_left_out(api: Api) -> None:
    whole = text_of(await api.frames("", TEXT, sampling=GREEDY))
    stop = whole[10:12]
    sampling = types_pb2.SamplingOptions(temperature=0, max_tokens=24, ignore_eos=True, stop=[stop])
    frames = await api.frames("", TEXT, sampling=sampling)
    assert text_of(frames) == whole[: whole.index(stop)]
    assert frames[-1].finished.reason == types_pb2.FINISH_REASON_STOP
    assert frames[-1].finished.stop == stop


async def test_logprobs(api: Api) -> None:
    sampling = types_pb2.SamplingOptions(temperature=0, max_tokens=5, ignore_eos=True, logprobs=3)
    frames = await api.frames("", TEXT, sampling=sampling)
    logprobs = [each for frame in frames for each in frame.delta.logprobs]
    assert [each.token_id for each in logprobs] == tokens_of(frames)
    for each in logprobs:
        assert each.logprob <= 0
        assert len(each.top) == 3
        # Greedy: the most probable one is taken.
        assert each.top[0].token_id == each.token_id
        assert each.top[0].logprob >= each.top[1].logprob >= each.top[2].logprob


async def test_seed_makes_sampling_repeatable(api: Api) -> None:
    sampling = types_pb2.SamplingOptions(temperature=1.0, max_tokens=24, seed=7, ignore_eos=True)
    one = await api.frames("", TEXT, sampling=sampling)
    assert tokens_of(await api.frames("", TEXT, sampling=sampling)) == tokens_of(one)


@pytest.mark.parametrize("prompt", ["text", "tokens"])
async def test_completion(api: Api, prompt: str) -> None:
    request = generation_pb2.CompleteRequest(sampling=GREEDY)
    if prompt == "text":
        request.text = TEXT
    else:
        request.tokens.ids.extend(range(64, 90))
    frames = [frame async for frame in api.completions.Complete(request)]
    assert len(tokens_of(frames)) == 24
    assert frames[-1].HasField("finished")


async def test_full_threshold_is_dense(api: Api) -> None:
    exact = types_pb2.TacticOptions(mode=types_pb2.ATTENTION_MODE_TACTIC, threshold=1.0)
    dense = types_pb2.TacticOptions(mode=types_pb2.ATTENTION_MODE_DENSE)
    one = await api.frames("", TEXT * 4, sampling=GREEDY, tactic=exact)
    assert tokens_of(await api.frames("", TEXT * 4, sampling=GREEDY, tactic=dense)) == tokens_of(one)


async def test_several_sessions_at_once(api: Api) -> None:
    texts = [TEXT[: 40 * i] for i in range(1, 7)]
    alone = [tokens_of(await api.frames("", text, sampling=GREEDY)) for text in texts]
    together = await asyncio.gather(*(api.frames("", text, sampling=GREEDY) for text in texts))
    assert [tokens_of(frames) for frames in together] == alone


async def test_model_and_workers_are_listed(api: Api) -> None:
    (model,) = (await api.admin.ListModels(admin_pb2.ListModelsRequest())).models
    assert (model.context_length, model.vocabulary_size, model.random_weights) == (32768, 259, True)
    workers = (await api.admin.ListWorkers(admin_pb2.ListWorkersRequest())).workers
    assert {worker.kind for worker in workers} == {
        admin_pb2.WORKER_KIND_DECODE,
        admin_pb2.WORKER_KIND_CLUSTERING,
    }
    stats = await api.admin.GetStats(admin_pb2.GetStatsRequest())
    assert stats.sessions >= 0
    assert len(stats.workers) == len(workers)
