"""What the index store promises, one promise at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tactic.workers.index.segment import Segment
from tactic.workers.index.store import MOST_SHORT


def lengths(segments: list[Segment]) -> list[int]:
    return [segment.length for segment in segments]


def test_a_prompt_is_cut_into_whole_segments_and_a_remainder(pools) -> None:
    pools.admit(0)
    assert lengths(pools.prefill(0, 2 * 64 + 40)) == [64, 64, 40]
    assert pools.row(0).clustered_length == 168
    pools.check()


def test_a_short_remainder_stays_in_the_tail(pools) -> None:
    pools.admit(0)
    assert lengths(pools.prefill(0, 64 + 31)) == [64]
    assert pools.prefill(0, 0) == []
    pools.check()


def test_chunks_of_a_prompt_leave_their_remainder_to_the_next(pools) -> None:
    pools.admit(0)
    assert lengths(pools.prefill(0, 100, complete=False)) == [64]
    assert lengths(pools.prefill(0, 100, complete=False)) == [64, 64]
    assert lengths(pools.prefill(0, 40)) == [48]
    assert pools.store.counters.tokens_clustered == 240
    pools.check()


def test_the_second_turn_reuses_the_first(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 168)
    pools.decode(0, 10)
    context = pools.context(0)
    pools.store.release(0)
    row = pools.admit(1, context)
    assert lengths(row.segments) == [64, 64, 40]
    assert pools.store.counters.tokens_reused == 168
    # The first turn's answer and the new question are new; nothing else is.
    assert lengths(pools.prefill(1, 60)) == [64]
    assert pools.store.counters.tokens_clustered == 168 + 64
    pools.check()


def test_sessions_on_one_prefix_share_its_segments(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 128)
    shared = pools.context(0)
    for slot in (1, 2):
        assert lengths(pools.admit(slot, shared).segments) == [64, 64]
        pools.prefill(slot, 64)
    assert len(pools.store.segments) == 2 + 2
    assert [segment.users for segment in pools.row(0).segments] == [3, 3]
    pools.check()


def test_a_fork_inside_a_segment_reuses_what_lies_before(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 3 * 64)
    row = pools.admit(1, pools.context(0)[:150])
    assert lengths(row.segments) == [64, 64]
    pools.prefill(1, 50)
    pools.check()


def test_a_retracted_request_finds_its_index_again(pools) -> None:
    first = pools.admit(0)
    pools.prefill(0, 128)
    segments, context = list(first.segments), pools.context(0)
    pools.store.release(0)
    pools.check()
    assert pools.store.row(0, pools.generation[0]) is None
    again = pools.admit(0, context)
    assert again.segments == segments
    assert again.generation != first.generation
    pools.check()


def test_a_row_is_only_found_under_its_generation(pools) -> None:
    row = pools.admit(0)
    assert pools.store.row(0, row.generation) is row
    assert pools.store.row(0, row.generation + 1) is None
    assert pools.store.row(1, row.generation) is None


def test_binding_again_without_a_release_drops_the_old_row(pools) -> None:
    # Streaming sessions free a request slot without telling.
    pools.admit(0)
    pools.prefill(0, 128)
    old = list(pools.row(0).segments)
    pools.admit(0)
    assert [segment.users for segment in old] == [0, 0]
    pools.check()


def test_other_keys_in_the_slots_are_not_taken_for_the_old_ones(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 128)
    context = pools.context(0)
    pools.store.release(0)
    # The second segment's last slot is freed, and another request writes to it.
    pools.free.append(int(context[127]))
    pools.write(1)
    assert lengths(pools.admit(1, context).segments) == [64]
    pools.check()


def test_the_same_positions_in_other_slots_have_no_index(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 128)
    moved = pools.context(0)
    moved[5], moved[70] = moved[70].clone(), moved[5].clone()
    assert pools.admit(1, moved).segments == []


def test_the_index_follows_its_positions_to_the_slots_that_the_prefix_cache_keeps(pools) -> None:
    # Two requests that begin alike were computed in one step: the cache keeps the first one's copy.
    contents = pools.draw(200)
    for slot in (0, 1):
        pools.admit(slot)
        pools.decode(slot, 200, contents)
        pools.build(pools.store.extend(slot, pools.row(slot), pools.context(slot), complete=True))
    kept, freed = pools.context(0)[:70], pools.context(1)[:70].tolist()
    pools.req_to_token[1, :70] = kept
    settled = pools.context(1)
    pools.store.settle(pools.row(1), settled[:100])
    pools.store.settle(pools.row(1), settled[100:])
    pools.drop(freed)
    pools.write(70)
    pools.check()
    pools.store.release(1)
    assert lengths(pools.admit(2, settled).segments) == [64, 64, 64]
    pools.check()


def test_positions_of_the_prefix_are_settled_from_the_start(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 128)
    assert pools.row(0).settled == 0
    row = pools.admit(1, pools.context(0))
    assert row.settled == 128
    pools.prefill(1, 64)
    pools.store.settle(row, pools.context(1)[128:])
    assert row.settled == 192
    pools.check()


def test_the_newest_of_two_equal_segments_is_found(pools) -> None:
    pools.admit(0)
    (old,) = pools.prefill(0, 64)
    (new,) = pools.store.reserve([(0, old.slots)], read_at=pools.clock.now)
    pools.build([new])
    pools.store.swap(0, pools.row(0), [old], [new])
    assert pools.admit(1, pools.context(0)).segments == [new]
    pools.check()


def test_a_longer_segment_is_found_before_a_shorter_one(pools) -> None:
    pools.admit(0)
    (old,) = pools.prefill(0, 40)
    pools.decode(0, 24)
    (new,) = pools.store.reserve([(0, pools.context(0))], read_at=pools.clock.now)
    pools.build([new])
    pools.store.swap(0, pools.row(0), [old], [new])
    assert pools.admit(1, pools.context(0)).segments == [new]
    # A fork before its end still finds the shorter one.
    assert pools.admit(2, pools.context(0)[:50]).segments == [old]
    pools.check()


def test_a_swap_is_one_new_version(pools) -> None:
    pools.admit(0)
    pools.prefill(0, 64 + 40)
    pools.decode(0, 60)
    row = pools.row(0)
    kept, old = row.segments
    slots = pools.context(0)
    new = pools.store.reserve([(64, slots[64:128]), (128, slots[128:164])], read_at=pools.clock.now)
    pools.build(new)
    assert row.version == 1
    pools.store.swap(0, row, [old], new)
    assert row.segments == [kept, *new]
    assert (row.version, row.clustered_length) == (2, 164)
    assert (old.users, old.superseded) == (0, True)
    assert pools.store.counters.tokens_clustered == 104 + 100
    pools.check()


def test_a_swap_leaves_other_users_of_the_old_segment_alone(pools) -> None:
    pools.admit(0)
    (old,) = pools.prefill(0, 64)
    other = pools.admit(1, pools.context(0))
    (new,) = pools.store.reserve([(0, old.slots)], read_at=pools.clock.now)
    pools.build([new])
    pools.store.swap(0, pools.row(0), [old], [new])
    assert (other.segments, other.version, old.users) == ([old], 1, 1)
    pools.check()


def test_what_goes_first_when_memory_is_short(make_pools: Callable) -> None:
    pools = make_pools(units=4)
    kept = {}
    for name in ("oldest", "superseded", "stale", "newest"):
        pools.admit(0)
        (kept[name],) = pools.prefill(0, 64)
        pools.store.release(0)
    kept["superseded"].superseded = True
    pools.free.append(int(kept["stale"].slots[0]))
    pools.write(1)
    pools.admit(0)
    for gone in ("stale", "superseded", "oldest"):
        (added,) = pools.prefill(0, 64)
        assert kept[gone] not in pools.store.segments
        assert added.unit == kept[gone].unit
        pools.check()
    assert kept["newest"] in pools.store.segments
    assert (pools.store.counters.segments_stale, pools.store.counters.segments_evicted) == (1, 2)


def test_segments_in_use_are_never_evicted(make_pools: Callable) -> None:
    pools = make_pools(units=2)
    pools.admit(0)
    assert len(pools.prefill(0, 128)) == 2
    pools.admit(1)
    assert pools.prefill(1, 64) == []
    assert pools.store.counters.allocation_failures == 1
    assert pools.store.table.clustered_length(1) == 0
    pools.check()


def test_a_prompt_longer_than_memory_is_indexed_as_far_as_it_goes(make_pools: Callable) -> None:
    pools = make_pools(units=3)
    pools.admit(0)
    assert lengths(pools.prefill(0, 5 * 64)) == [64, 64, 64]
    pools.check()


def test_segments_are_allocated_all_or_none(make_pools: Callable) -> None:
    pools = make_pools(units=3)
    pools.admit(0)
    pools.prefill(0, 64)
    pools.decode(0, 3 * 64)
    slots, before = pools.context(0), pools.store.segments
    pieces = [(64 * i, slots[64 * i : 64 * (i + 1)]) for i in range(1, 4)]
    assert pools.store.reserve(pieces, read_at=pools.clock.now) is None
    assert pools.store.segments == before
    pools.check()
    both = pools.store.reserve(pieces[:2], read_at=pools.clock.now)
    assert [segment.start for segment in both] == [64, 128]
    assert pools.store.units_used == 3


def test_pieces_of_one_allocation_do_not_evict_each_other(make_pools: Callable) -> None:
    pools = make_pools(units=2)
    pools.admit(0)
    pools.prefill(0, 64)
    pools.decode(0, 128)
    slots = pools.context(0)
    pieces = [(64, slots[64:128]), (128, slots[128:192])]
    assert pools.store.reserve(pieces, read_at=pools.clock.now) is None
    pools.check()


def test_a_run_of_units_is_made_by_evicting_neighbours(make_pools: Callable) -> None:
    pools = make_pools(units=4)
    for _ in range(4):
        pools.admit(0)
        pools.prefill(0, 64)
        pools.store.release(0)
    pools.admit(1)
    pools.decode(1, 513)
    (long,) = pools.store.reserve([(0, pools.context(1))], read_at=pools.clock.now)
    assert (long.unit, long.units) == (0, 2)
    assert pools.store.units_used == 4


def test_a_full_table_row_takes_no_more(make_pools: Callable) -> None:
    pools = make_pools(columns=2)
    pools.admit(0)
    assert len(pools.prefill(0, 3 * 64)) == 2
    assert pools.prefill(0, 64) == []
    assert len(pools.admit(1, pools.context(0)).segments) == 2
    pools.check()
    row = pools.row(0)
    pieces = [(128, pools.context(0)[128:192])]
    added = pools.store.reserve(pieces, read_at=pools.clock.now)
    assert not pools.store.has_room(row)
    assert pools.store.has_room(row, removed=1)
    with pytest.raises(ValueError, match="at most 2 segments"):
        pools.store.swap(0, row, [], added)


@pytest.mark.parametrize("damage", ["lost unit", "users", "table", "partition", "freed row"])
def test_integrity_check_sees_damage(pools, damage: str) -> None:
    pools.admit(0)
    pools.prefill(0, 128)
    pools.check()
    segment = pools.row(0).segments[0]
    if damage == "lost unit":
        segment.units = 0
    elif damage == "users":
        segment.users += 1
    elif damage == "table":
        pools.store.table.unit[0, 1] += 1
    elif damage == "partition":
        members = pools.store.arenas[1].members
        members[0, 512 * segment.unit] = members[0, 512 * segment.unit + 1]
    else:
        pools.store.table.count[2] = 1
    with pytest.raises(AssertionError):
        pools.store.check_integrity(deep=True)


def test_empty_prefix_and_empty_request(pools) -> None:
    row = pools.admit(3)
    assert pools.store.extend(3, row, torch.empty(0, dtype=torch.int32), complete=True) == []
    pools.store.release(3)
    pools.store.release(3)
    pools.check()


def short_turns(pools, turns: int, tokens: int) -> int:
    """So many turns on one session, each a request of its own; most positions outside the index after one."""
    context, most_open = torch.empty(0, dtype=torch.int32), 0
    for _ in range(turns):
        pools.admit(0, context)
        pools.prefill(0, tokens)
        most_open = max(most_open, pools.lengths[0] - pools.row(0).clustered_length)
        context = pools.context(0)
        pools.check()
    return most_open


def test_many_short_turns_stay_in_the_index(make_pools: Callable[..., Any]) -> None:
    """Their segments are cut anew into whole ones, before they fill the table or waste memory."""
    pools = make_pools(units=80, columns=40)
    assert short_turns(pools, 50, pools.MIN_TOKENS + 3) < pools.MIN_TOKENS
    row = pools.row(0)
    assert sum(segment.length < pools.SEGMENT for segment in row.segments) <= MOST_SHORT
    assert len(row.segments) <= 50 * 35 / pools.SEGMENT + MOST_SHORT
    assert pools.store.counters.tokens_clustered <= 4 * pools.lengths[0]
    assert pools.store.counters.allocation_failures == 0


def test_few_short_turns_cluster_only_what_is_new(pools) -> None:
    short_turns(pools, 10, 40)
    assert pools.store.counters.tokens_clustered == pools.lengths[0]


def test_a_row_that_is_full_is_cut_anew(make_pools: Callable[..., Any]) -> None:
    pools = make_pools(columns=6)
    assert short_turns(pools, 8, 40) < pools.MIN_TOKENS
    assert lengths(pools.row(0).segments) == [64, 64, 64, 64, 64]


def test_without_memory_to_cut_anew_short_segments_stay(make_pools: Callable[..., Any]) -> None:
    pools = make_pools(columns=4, units=4)
    assert short_turns(pools, 5, 40) == 40
    assert lengths(pools.row(0).segments) == [40, 40, 40, 40]
