"""The peer Quest: its kernels against its definition, and the definition against dense attention."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from peers.quest import PAGE, Pages, QuestRunner, attend_pages, build_pages, choose_pages

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest


def poison(pages: Pages, seq_lens: torch.Tensor) -> None:
    for i, length in enumerate(seq_lens.tolist()):
        for bound in (pages.lowest, pages.highest):
            bound[i, :, -(-length // PAGE) :] = torch.nan


@pytest.mark.parametrize("budget", [2, 5, 400])
@pytest.mark.parametrize(("group", "dim", "dtype"), [(3, 16, torch.float32), (8, 24, torch.float16)])
def test_the_kernels_read_what_the_definition_reads(
    make_scene: Maker, device: str, budget: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    scene = make_scene([([], 700), ([], 33), ([], 1), ([], 1600)], group=group, dim=dim, dtype=dtype)
    pages = build_pages(scene.k_pool, scene.req_to_token, scene.request_slots, scene.seq_lens)
    poison(pages, scene.seq_lens)
    chosen = choose_pages(scene.q, pages, scene.seq_lens, budget, scene.scale)
    there = scene.to(device)
    runner = QuestRunner.create(
        batch=4,
        query_heads=2 * group,
        kv_heads=2,
        head_dim=dim,
        context=int(scene.seq_lens.max()),
        budget=budget,
        device=device,
        processors=24,
    )
    for buffer in (runner.bounds, runner.sums, runner.partial, runner.partial_lse):
        buffer.fill_(torch.nan)
    moved = Pages(pages.lowest.to(device), pages.highest.to(device))
    pools = there.k_pool, there.v_pool, there.req_to_token, there.request_slots, there.seq_lens
    out, lse = runner.run(there.q, *pools, moved, there.scale)

    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for i, length in enumerate(scene.seq_lens.tolist()):
        slots = scene.slot_ids(i)
        expected, expected_lse = attend_pages(
            scene.q[i], scene.k_pool, scene.v_pool, slots, chosen[i], scene.scale
        )
        listed = runner.rows[i, :, : chosen[i].shape[1] * PAGE].cpu()
        for head, rows in enumerate(listed):
            wanted = (chosen[i][head][:, None] * PAGE + torch.arange(PAGE)).flatten()
            wanted = slots[wanted[wanted < length]] * 2 + head
            assert torch.equal(rows[rows >= 0].sort().values, wanted.sort().values)
        torch.testing.assert_close(out[i].cpu().float(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse[i].cpu(), expected_lse, rtol=tolerance, atol=tolerance)


def test_tied_pages_fill_the_budget_exactly(make_scene: Maker, device: str) -> None:
    scene = make_scene([([], 640)], heads=1, group=1)
    scene.k_pool[:] = 1.0
    pages = build_pages(scene.k_pool, scene.req_to_token, scene.request_slots, scene.seq_lens)
    there = scene.to(device)
    runner = QuestRunner.create(
        batch=1, query_heads=1, kv_heads=1, head_dim=16, context=640, budget=7, device=device
    )
    moved = Pages(pages.lowest.to(device), pages.highest.to(device))
    table = there.req_to_token, there.request_slots, there.seq_lens
    runner.select(there.q, *table, moved, there.scale)
    rows = runner.rows[0, 0].cpu().tolist()
    slots = scene.slot_ids(0).tolist()
    assert len(set(rows)) == 7 * PAGE
    assert set(slots[:PAGE] + slots[-PAGE:]) <= set(rows)


def test_all_pages_are_dense_attention(make_scene: Maker) -> None:
    scene = make_scene([([], 100)])
    pages = build_pages(scene.k_pool, scene.req_to_token, scene.request_slots, scene.seq_lens)
    (chosen,) = choose_pages(scene.q, pages, scene.seq_lens, 100, scene.scale)
    out, lse = attend_pages(scene.q[0], scene.k_pool, scene.v_pool, scene.slot_ids(0), chosen, scene.scale)
    expected, expected_lse = scene.dense()
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(lse, expected_lse[0])


def test_the_bound_holds(make_scene: Maker) -> None:
    """No key of a page has a larger logit than the page's bound (section 3.2)."""
    scene = make_scene([([], 333)])
    pages = build_pages(scene.k_pool, scene.req_to_token, scene.request_slots, scene.seq_lens)
    query = scene.q[0].view(2, 3, -1)
    upper = query.clamp(min=0) @ pages.highest[0].mT + query.clamp(max=0) @ pages.lowest[0].mT
    logits = query @ scene.k_pool[scene.slot_ids(0).long()].permute(1, 2, 0)
    assert bool((logits <= upper.repeat_interleave(PAGE, -1)[..., :333] + 1e-5).all())
