import pytest

from tactic.workers.index.memory import IndexShape, make_table, split_layers

SHAPE = IndexShape(layers=32, kv_heads=8, head_dim=128, cluster_size=32)
KV_TOKEN_BYTES = 32 * 8 * 128 * 2 * 2
"""Keys and values of a token in bf16."""


def test_unit_bytes_are_those_of_the_arenas() -> None:
    arenas = split_layers(SHAPE.arena(3, "cpu"), SHAPE.layers)
    total = sum(each.nbytes for arena in arenas for each in arena.tensors)
    assert len(arenas) == 32
    assert 3 * SHAPE.unit_bytes == total


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
def test_units_keep_to_the_share(share: float) -> None:
    tokens = 100_000
    taken = SHAPE.units(tokens, KV_TOKEN_BYTES, share) * SHAPE.unit_bytes
    allowed = tokens * SHAPE.bytes_per_token(KV_TOKEN_BYTES, share)
    assert allowed <= taken + SHAPE.unit_bytes
    assert taken <= allowed + SHAPE.unit_bytes
    if share:
        assert allowed == pytest.approx(share * tokens * KV_TOKEN_BYTES)


def test_automatic_size_indexes_every_token_for_few_percent() -> None:
    tokens = 1_000_000
    units = SHAPE.units(tokens, KV_TOKEN_BYTES, 0)
    assert units * 512 >= tokens
    assert 0.01 < units * SHAPE.unit_bytes / (tokens * KV_TOKEN_BYTES) < 0.03


def test_table_holds_the_whole_context_and_short_turns() -> None:
    table = make_table(rows=3, context_length=20_000, segment_size=8192, device="cpu")
    assert tuple(table.unit.shape) == (3, 2 * 3 + 32)
