"""One random case of each kind: kernels against their definitions."""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from peers.quest import PAGE, QuestRunner, attend_pages, build_pages, choose_pages
from read_rows import read_rows
from scenes import CAPACITY, SEGMENTS, SINKS, Shape, make_scene, poison, to_device

from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.index import clusters_in
from tactic.kernels.kmeans import kmeans_pool
from tactic.kernels.kmeans.naive import centroid_dtype, initial_positions
from tactic.kernels.kmeans.naive import kmeans as kmeans_naive
from tactic.kernels.kmeans.triton import kmeans_pool_triton
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.sparse_decode import sparse_decode

_ITERATIONS = 3
_QUEST_PAGES = 40


class MismatchError(Exception):
    """A kernel differs from its definition."""


@dataclass
class Tally:
    """What the chain's cases have compared.

    Attributes:
        pairs: (request, KV head) pairs whose reads were compared with the definition's.
        ties: those that differ, within what a tie at the cut explains.
        share_gap: largest difference of a query head's true attention share from the definition's.
        share_gaps: sum of these differences.
        heads: query heads that were compared.
    """

    pairs: int = 0
    ties: int = 0
    share_gap: float = 0.0
    share_gaps: float = 0.0
    heads: int = 0


def tolerance(shape: Shape) -> float:
    """Of outputs and of log-sum-exps."""
    return 1e-3 if shape.dtype == torch.float32 else 2e-2


def make_runner(shape: Shape, device: str) -> DecodeRunner:
    """As the engine makes it, for scenes of the shape."""
    return DecodeRunner.create(
        batch=shape.batch,
        query_heads=shape.heads * shape.group,
        kv_heads=shape.heads,
        head_dim=shape.dim,
        context=CAPACITY,
        segments=SEGMENTS,
        cluster_size=shape.cluster_size,
        device=device,
        fit=Fit() if shape.fit else None,
    )


def check_chain(shape: Shape, runner: DecodeRunner, seed: int, device: str, tally: Tally) -> None:
    """What is read, to a tie at the cut, and the attention over it."""
    scene = make_scene(shape, seed)
    there = to_device(scene, device)
    poison(runner)
    runner.plan(there.table, there.options, there.request_slots, there.seq_lens)
    pools = there.k_pool, there.v_pool, there.req_to_token, there.arena
    result = runner.run(there.q, *pools, scale=there.scale, sinks=SINKS)
    out, lse = result.out.cpu(), runner.trace.lse.cpu()

    plain = scene.dequantized()
    rows = read_rows(runner, plain.req_to_token, plain.request_slots, plain.seq_lens, SINKS)
    for i, listed in enumerate(rows):
        if len(set(listed.tolist())) != len(listed):
            raise MismatchError(f"pair {i} reads a row twice")
    indptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    expected_out, expected_lse = sparse_decode(
        plain.q, plain.k_pool, plain.v_pool, torch.cat(rows), indptr, plain.scale
    )
    near = tolerance(shape)
    for name, actual, expected in (("output", out, expected_out), ("log-sum-exp", lse, expected_lse)):
        error = (actual.float() - expected.float()).abs().max()
        if not error <= near:
            raise MismatchError(f"{name} differs by {error:.2e} from attention over the same rows")

    definition = plain.definition()
    assert definition.share is not None
    share = torch.exp(expected_lse - plain.dense()[1])
    by_fit = plain.options.estimator[plain.request_slots.long()] == estimator_id("fit")
    for i in (~by_fit).nonzero().flatten().tolist():  # `fit` samples other ranks than the definition
        slack = _check_selection(runner, i, result.selected[i].cpu(), definition.selected[i])
        # A group reads what any head selects, and all where a head is near the limit for that.
        off = (result.read[i].cpu() - definition.read[i]).abs()
        everything = result.read[i].cpu().eq(plain.seq_lens[i]) | definition.read[i].eq(plain.seq_lens[i])
        allowed = slack.view(shape.heads, -1).sum(-1)
        if bool(((off > allowed) & ~(everything & (allowed > 0))).any()):
            raise MismatchError(
                f"request {i} reads {result.read[i].tolist()}, the definition {definition.read[i].tolist()}"
            )
        gaps = (share[i] - definition.share[i]).abs()
        tally.pairs += shape.heads
        tally.ties += int((off > 0).sum())
        tally.share_gap = max(tally.share_gap, float(gaps.max()))
        tally.share_gaps += float(gaps.sum())
        tally.heads += len(gaps)


def _check_selection(
    runner: DecodeRunner, i: int, selected: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """Each query head of request i selects what the definition does, but for the level of scores at the cut.

    A score that is rounded to the other side of a level's edge moves its cluster's weight by 3 %.

    Returns:
        Tokens `[Hq]` that lie on the lowest level that is selected, and on the next one.
    """
    count = int(runner.step.clusters[i])
    if not count:
        return torch.zeros_like(expected)
    levels = runner.scores.levels[i, :, :count].mT.flatten(0, 1).cpu()
    sizes = runner.scores.sizes[i, :, :count].cpu()
    sizes = sizes.repeat_interleave(len(levels) // len(sizes), 0)
    cuts = runner.reads.cuts[i].cpu()[:, None]
    chosen = (levels >= cuts) & (sizes > 0)
    lowest = torch.where(chosen, levels, LEVELS).amin(-1, keepdim=True)
    following = torch.where(chosen | (sizes == 0), -1, levels).amax(-1, keepdim=True)
    low = selected - torch.where(levels == lowest, sizes, 0).sum(-1)
    high = selected + torch.where(levels == following, sizes, 0).sum(-1)
    for head in ((expected < low) | (expected > high)).nonzero().flatten().tolist():
        raise MismatchError(
            f"query head {head} of request {i} selects {int(selected[head])}, the definition "
            f"{int(expected[head])}; but for a level, that would be {int(low[head])} to {int(high[head])}"
        )
    return high - low


def check_kmeans(shape: Shape, seed: int, device: str, most: int) -> None:
    """A partition without empty clusters, as good as the definition's."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    n = rng.choice([1, 17, 64, rng.randint(2, most), rng.randint(2, most), most])
    kv_dtype = shape.kv_dtype or shape.dtype
    pool = torch.full((2 * n + 3, shape.heads, shape.dim), torch.nan).to(kv_dtype)
    ids = torch.randperm(len(pool), generator=generator)[:n]
    keys = torch.randn(n, shape.heads, shape.dim, generator=generator) + rng.choice([0, 3])
    pool[ids] = keys.to(kv_dtype)
    points = pool[ids].transpose(0, 1).contiguous()
    init = points[:, initial_positions(n, clusters_in(n, shape.cluster_size), 0)].to(centroid_dtype(kv_dtype))
    expected = kmeans_naive(points, shape.cluster_size, max_iters=_ITERATIONS, init=init)
    run = kmeans_pool if device == "cuda" else kmeans_pool_triton  # on a CPU: in Triton's interpreter
    actual = to_device(
        run(
            pool.to(device),
            ids[None].to(device),
            shape.cluster_size,
            max_iters=_ITERATIONS,
            init=init.to(device),
        ),
        "cpu",
    )
    members = actual.members.long()
    if not torch.equal(members.sort(-1).values, torch.arange(n).expand_as(members)):
        raise MismatchError(f"members of {n} positions are no permutation")
    if int(actual.sizes.min()) < 1 or not torch.equal(actual.starts, actual.sizes.cumsum(-1) - actual.sizes):
        raise MismatchError(f"sizes and starts of {n} positions do not fit: {actual.sizes.tolist()}")
    label = torch.arange(actual.sizes.shape[1]).repeat_interleave(actual.sizes[0].long())
    own = points[0, members[0]].float() - actual.centroids[0].float()[label]
    spread = torch.zeros(len(actual.sizes[0])).index_add_(0, label, own.square().sum(-1)) / actual.sizes[0]
    if not torch.allclose(spread, actual.spread[0], rtol=2e-2, atol=1e-3):
        raise MismatchError(f"the spread of {n} positions is not that of the members")
    cost, best = (float((each.spread * each.sizes).sum()) for each in (actual, expected))
    if cost > best * 1.03 + 1e-2 * n:
        raise MismatchError(f"{n} positions cost {cost:.1f}, the definition reaches {best:.1f}")


def check_quest(shape: Shape, seed: int, device: str) -> None:
    """The peer: pages chosen, to a tie, and attention over them."""
    scene = make_scene(shape, seed)
    plain = scene.dequantized()
    pages = build_pages(plain.k_pool, plain.req_to_token, plain.request_slots, plain.seq_lens)
    runner = QuestRunner.create(
        batch=shape.batch,
        query_heads=shape.heads * shape.group,
        kv_heads=shape.heads,
        head_dim=shape.dim,
        context=CAPACITY,
        budget=_QUEST_PAGES,
        device=device,
    )
    poison(runner)
    there = to_device(scene, device)
    tables = there.req_to_token, there.request_slots, there.seq_lens
    widened = type(pages)(
        *(
            torch.nn.functional.pad(each, (0, 0, 0, CAPACITY // PAGE - each.shape[2]), value=torch.nan)
            for each in (pages.lowest, pages.highest)
        )
    )
    out, lse = runner.run(
        there.q, there.k_pool, there.v_pool, *tables, to_device(widened, device), there.scale
    )
    chosen = choose_pages(plain.q, pages, plain.seq_lens, _QUEST_PAGES, plain.scale)
    for i, length in enumerate(plain.seq_lens.tolist()):
        slot_ids = plain.req_to_token[plain.request_slots[i], :length]
        count = min(_QUEST_PAGES, -(-length // PAGE))
        position = torch.full((len(plain.k_pool),), -1)
        position[slot_ids.long()] = torch.arange(length)
        listed = runner.rows[i, :, : count * PAGE].cpu()
        slots = listed.clamp(min=0) // shape.heads
        own = torch.where(listed >= 0, position[slots.long()], -PAGE).view(shape.heads, count, PAGE)
        taken = (own.amax(-1) // PAGE).sort(-1).values
        for head in range(shape.heads):
            if len(set(taken[head].tolist()) & set(chosen[i][head].tolist())) < count - 2:
                raise MismatchError(
                    f"head {head} takes pages {taken[head].tolist()}, not {chosen[i][head].tolist()}"
                )
        expected, expected_lse = attend_pages(
            plain.q[i], plain.k_pool, plain.v_pool, slot_ids, taken, plain.scale
        )
        for actual, right in ((out[i], expected), (lse[i], expected_lse)):
            error = (actual.cpu().float() - right).abs().max()
            if not error <= tolerance(shape):
                raise MismatchError(f"request {i} differs by {error:.2e} from attention over the same pages")
