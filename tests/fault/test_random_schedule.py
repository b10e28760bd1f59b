"""Random schedules of everything that may befall an index: not one broken invariant, not one wrong token."""

import math
from itertools import cycle
from typing import Any

import pytest
import torch
from pools import Pools
from schedule import Request, Schedule

from tactic.kernels.decode import DecodeResult, decode
from tactic.kernels.estimators import estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.workers.index.segment import Segment

EVENTS, QUERY_HEADS, VOCABULARY = 1500, 4, 256
BELOW_ONE = math.nextafter(1, 0)
"""Nothing may be left out, but everything is read through the index: at 1 it is read without."""


class Reader:
    """Decodes every live request after each event, and compares with dense attention over its own truth."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.generator = torch.Generator().manual_seed(1)
        self.head = torch.randn(QUERY_HEADS * pools.DIM, VOCABULARY, generator=self.generator).double()
        self.estimators = cycle(("guarded", "fit", "centroid", "exact"))
        self.tokens = 0
        self.read_less = 0
        self._sound: set[tuple[int, int, Segment]] = set()

    def check(self, schedule: Schedule) -> None:
        self.pools.store.check_integrity()
        self.clusters(schedule)
        live = [request for request in schedule.running if request.done]
        if not live:
            return
        layer = schedule.events % self.pools.LAYERS
        queries = torch.randn(len(live), QUERY_HEADS, self.pools.DIM, generator=self.generator)
        truth = torch.stack([self.dense(r, layer, q) for r, q in zip(live, queries, strict=True)])
        whole = self.decode(live, layer, queries, 1.0)
        torch.testing.assert_close(whole.out.double(), truth, atol=1e-5, rtol=1e-5)
        assert torch.equal(self.token(whole.out), self.token(truth))
        self.tokens += len(live)

        one = schedule.random.randrange(len(live))
        request, query, expected = live[one : one + 1], queries[one : one + 1], truth[one : one + 1]
        through_index = self.decode(request, layer, query, BELOW_ONE, "exact")
        torch.testing.assert_close(through_index.out.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(self.token(through_index.out), self.token(expected))
        self.sparse(request[0], layer, query, expected)

    def clusters(self, schedule: Schedule) -> None:
        """Whatever has come into a row is a partition, and its centroids are the means of that row's keys."""
        pools = self.pools
        shown = {
            (request.slot, pools.generation[request.slot], segment)
            for request in schedule.running
            for segment in pools.row(request.slot).segments
        }
        for slot, _, segment in shown - self._sound:
            pools.check_segment(segment, pools.read_slots(slot, segment.start, segment.end))
        self._sound = shown

    def sparse(self, request: Request, layer: int, query: torch.Tensor, truth: torch.Tensor) -> None:
        """The paper's bound on the error, which a read of anything else's slots would break."""
        result = self.decode([request], layer, query, 0.7, next(self.estimators))
        assert result.share is not None
        assert bool((result.read <= request.done).all())
        self.read_less += bool((result.read < request.done).any())
        largest = request.contents[1, layer, : request.done].double().norm(dim=-1).amax(0)
        bound = 2 * (1 - result.share.double()) * largest.repeat_interleave(QUERY_HEADS // self.pools.HEADS)
        assert bool(((result.out - truth).norm(dim=-1) <= bound + 1e-4).all())

    def decode(
        self,
        requests: list[Request],
        layer: int,
        queries: torch.Tensor,
        threshold: float,
        estimator: str = "fit",
    ) -> DecodeResult:
        pools = self.pools
        options = DecodeOptions.create(
            len(pools.lengths),
            threshold=threshold,
            estimator=estimator_id(estimator),
            sinks=4,
            min_clustered=1,
        )
        return decode(
            queries,
            pools.keys[layer],
            pools.values[layer],
            pools.req_to_token,
            torch.tensor([request.slot for request in requests]),
            torch.tensor([request.done for request in requests]),
            pools.store.table,
            pools.store.arenas[layer],
            options,
            scale=pools.DIM**-0.5,
            measure=threshold < 1,
        )

    def dense(self, request: Request, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Attention in double precision over what the request wrote, wherever it may lie now; [Hq, d]."""
        keys, values = request.contents[:, layer, : request.done].double().transpose(1, 2)
        grouped = query.double().view(self.pools.HEADS, -1, self.pools.DIM)
        weights = (grouped @ keys.transpose(1, 2) * self.pools.DIM**-0.5).softmax(-1)
        return (weights @ values).view_as(query)

    def token(self, out: torch.Tensor) -> torch.Tensor:
        """The most probable token of a model whose only layer this is, [B]."""
        return (out.double().flatten(1) @ self.head).argmax(-1)


AMPLE: dict[str, Any] = {"slots": 2400, "units": 110, "columns": 12}
SCARCE: dict[str, Any] = {"slots": 1100, "units": 12, "columns": 5}


@pytest.mark.parametrize(
    ("scope", "in_place", "late"),
    [("tail", True, True), ("full", True, False), ("tail", False, True)],
    ids=["tail-late", "full", "tail-sent-late"],
)
@pytest.mark.parametrize(
    ("sizes", "moves"),
    [(AMPLE, Schedule.MOVES), (SCARCE, Schedule.MOVES), (AMPLE, Schedule.TURNOVER)],
    ids=["long", "scarce", "short"],
)
def test_no_schedule_breaks_the_index_or_changes_a_token(
    sizes: dict[str, Any], moves: dict[str, float], scope: str, in_place: bool, late: bool
) -> None:
    pools = Pools(rows=4, **sizes)
    reader = Reader(pools)
    schedule = Schedule(
        pools, seed=0, moves=moves, scope=scope, in_place=in_place, late=late, check=reader.check
    )
    schedule.run(EVENTS)
    pools.check()
    seen, counters = schedule.seen, pools.store.counters
    outcomes = ["published", "request_ended"]
    if moves is Schedule.MOVES:
        outcomes += ["slots_moved", "invalid_result", "actor_died", "timeout"]
    in_memory = {"write_late", "end"}
    for event in (*(moves if in_place else moves.keys() - in_memory), "reused", *outcomes):
        assert seen[event] > 0, f"{event} did not happen: {seen}"
    assert reader.tokens > EVENTS
    assert reader.read_less > EVENTS / 4
    assert counters.segments_stale > 0
    if sizes is SCARCE:
        assert min(seen["index_memory"], seen["table_full"]) > 0
        assert min(counters.segments_evicted, counters.allocation_failures) > 0
