import pytest
from hypothesis import given
from hypothesis import strategies as st

from tactic.workers.index.extents import ExtentAllocator

UNITS = 24


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9))))
def test_allocator_does_as_a_bitmap(operations: list[tuple[bool, int]]) -> None:
    allocator, bitmap, held = ExtentAllocator(UNITS), [False] * UNITS, []
    for allocate, number in operations:
        if allocate:
            free = [start for start in range(UNITS - number + 1) if not any(bitmap[start : start + number])]
            start = allocator.allocate(number)
            assert start == (free[0] if free else None)
            if start is not None:
                bitmap[start : start + number] = [True] * number
                held.append((start, number))
        elif held:
            start, length = held.pop(number % len(held))
            allocator.release(start, length)
            bitmap[start : start + length] = [False] * length
        shown = [unit for start, length in allocator.runs() for unit in range(start, start + length)]
        assert shown == [unit for unit in range(UNITS) if not bitmap[unit]]
        assert allocator.free_units == len(shown)
        ends = [start + length for start, length in allocator.runs()]
        starts = [start for start, _ in allocator.runs()[1:]]
        assert all(end < start for end, start in zip(ends, starts, strict=False)), "neighbours not merged"


@pytest.mark.parametrize("run", [(0, 1), (3, 2), (4, 2), (7, 2), (2, 4)])
def test_release_refuses_what_is_free_or_outside(run: tuple[int, int]) -> None:
    allocator = ExtentAllocator(8)
    for length in (2, 1, 2, 3):
        allocator.allocate(length)
    allocator.release(0, 2)
    allocator.release(3, 2)
    before = allocator.runs()
    with pytest.raises(ValueError, match="not allocated"):
        allocator.release(*run)
    assert allocator.runs() == before


def test_an_empty_range_gives_nothing() -> None:
    assert ExtentAllocator(0).allocate(1) is None
