"""Load as front ends share it."""

import asyncio
from uuid import uuid4

import pytest

from tactic.service.routing.load import LOAD_KEY, LoadBook
from tactic.service.sessions import RedisClient


@pytest.fixture
async def redis(redis: RedisClient) -> RedisClient:
    await redis.hdel(LOAD_KEY, *(await redis.hgetall(LOAD_KEY) or ["none"]))
    return redis


def request_id() -> str:
    return uuid4().hex


async def test_least_loaded_candidate_is_taken(redis: RedisClient) -> None:
    one, other = LoadBook(redis), LoadBook(redis)
    big = request_id()
    assert await one.charge(big, 100, "turn", ["a", "b"], "") == "a"
    assert await other.charge(request_id(), 10, "turn", ["a", "b"], "") == "b"
    assert await other.charge(request_id(), 10, "turn", ["a", "b"], "") == "b"
    assert await other.charge(request_id(), 10, "prefill", ["a", "b"], "a") == "a"
    assert await one.count("turn") == 3
    await one.discharge(big)
    assert await other.charge(request_id(), 10, "turn", ["a", "b"], "") == "a"


async def test_preferred_worker_must_be_a_candidate(redis: RedisClient) -> None:
    assert await LoadBook(redis).charge(request_id(), 1, "turn", ["a"], "gone") == "a"


async def test_charge_repeated_is_one_charge(redis: RedisClient) -> None:
    book, name = LoadBook(redis), request_id()
    assert await book.charge(name, 5, "turn", ["a", "b"], "b") == "b"
    assert await book.charge(name, 5, "turn", ["a", "b"], "") == "b"
    assert await book.count("turn") == 1


async def test_load_of_a_dead_front_end_runs_out(redis: RedisClient) -> None:
    dead, living = LoadBook(redis, ttl_s=0.02), LoadBook(redis)
    await dead.charge(request_id(), 1000, "turn", ["a"], "")
    async with asyncio.timeout(10):
        while await living.count("turn"):
            await asyncio.sleep(0.005)
    assert await living.charge(request_id(), 1, "turn", ["a", "b"], "") == "a"


async def test_living_front_end_keeps_its_load(redis: RedisClient) -> None:
    book, name = LoadBook(redis, ttl_s=30), request_id()
    await book.charge(name, 7, "turn", ["a"], "")
    before = (await redis.hgetall(LOAD_KEY))[name.encode()].decode().split()
    book._ttl_s = 0.003
    keeping = asyncio.create_task(book.keep())
    async with asyncio.timeout(10):
        while (after := (await redis.hgetall(LOAD_KEY))[name.encode()].decode().split()) == before:
            await asyncio.sleep(0.002)
    assert after[:3] == before[:3]
    assert int(after[3]) > int(before[3])
    await book.discharge(name)
    await asyncio.sleep(0.02)
    assert name.encode() not in await redis.hgetall(LOAD_KEY)
    keeping.cancel()
