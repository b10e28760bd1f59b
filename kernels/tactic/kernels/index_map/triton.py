# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Lists the pool slots of what a group's query heads select together."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.triton import load_extent
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.union.naive import NEARLY_ALL

_RUN = 8  # neighbours among clusters that one program takes: a sector of their levels and sizes
_MOST_CLUSTERS = 1024  # of a program
_PICKED = 32  # clusters that tokens are sought among at once
_TOKENS = 512  # listed at once
_WARPS = 4


@dataclass(frozen=True)
class Listing:
    """How the clusters of a KV head are shared out among programs, and what these note.

    Attributes:
        clusters: of one program at most; a power of two.
        listers: programs of a KV head.
        picked: `[≥ B * H * listers * 3 * clusters]` int32; a program's notes of the clusters that it lists.
        listed: `[≥ B * H * listers]` int32; 1 + tokens that a program lists, once it knows. Zero between two
            layers: who reads the lists clears it.
    """

    clusters: int
    listers: int
    picked: Tensor
    listed: Tensor

    @classmethod
    def create(
        cls, *, batch: int, kv_heads: int, clusters: int, programs: int, device: torch.device | str
    ) -> "Listing":
        """Room for requests of at most `clusters` clusters, in batches of at most `batch`."""
        sizes = [_share_out(n * kv_heads, clusters, programs) for n in range(1, batch + 1)]
        most = max(n * kv_heads * listers for n, (_, listers) in enumerate(sizes, 1))
        picked = max(n * kv_heads * each * listers for n, (each, listers) in enumerate(sizes, 1))
        each, listers = sizes[-1]
        return cls(
            clusters=each,
            listers=listers,
            picked=torch.zeros(3 * picked, dtype=torch.int32, device=device),
            listed=torch.zeros(most, dtype=torch.int32, device=device),
        )

    def shrink(self, *, batch: int, kv_heads: int, clusters: int, programs: int) -> "Listing":
        """For fewer requests in the same memory."""
        each, listers = _share_out(batch * kv_heads, clusters, programs)
        return Listing(each, listers, self.picked, self.listed)


def _share_out(pairs: int, clusters: int, programs: int) -> tuple[int, int]:
    """Clusters of a program and programs of a pair, so that there are about `programs` in all."""
    each = triton.next_power_of_2(triton.cdiv(clusters * pairs, programs))
    each = min(max(each, _RUN), _MOST_CLUSTERS)
    return each, triton.cdiv(clusters, each)


def list_slots(
    reads: Reads,
    listing: Listing,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    req_to_token: Tensor,
    *,
    sinks: int,
) -> None:
    """Lists the members of the clusters that any head of a group selects, and clears the tally of scores.

    The programs of a KV head own its clusters in short runs, in turn: what lies together is sought together.
    Each tells how many tokens it lists, and begins where those before it end; so that the lists, and what is
    computed from them, are the same each time. Where some head selects nearly everything, nothing is listed.

    Args:
        reads: `lengths` and `slots` filled.
        listing: of the batch.
        scores: of the layer; `tally` cleared.
        plan: of this step.
        arena: this layer's index.
        req_to_token: `[R, max_context]` int32.
        sinks: positions that are always attended.
    """
    batch, heads, most = scores.sizes.shape
    query_heads = reads.cuts.shape[1]
    part, whole = NEARLY_ALL
    counts = scores.tally.shape[2] * LEVELS
    share = triton.cdiv(counts, listing.listers)
    _list_slots[(batch * heads, listing.listers)](
        req_to_token,
        arena.members,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.begins,
        scores.levels,
        scores.tally,
        scores.sizes,
        scores.firsts,
        reads.cuts,
        reads.selected,
        reads.lengths,
        reads.slots,
        listing.picked,
        listing.listed,
        heads,
        most,
        arena.members.shape[1],
        req_to_token.stride(0),
        reads.slots.shape[2],
        SINKS=sinks,
        LEVELS=LEVELS,
        COUNTS=counts,
        SHARE=share,
        SHARE_PADDED=triton.next_power_of_2(share),
        GROUP=query_heads // heads,
        GROUP_PADDED=triton.next_power_of_2(query_heads // heads),
        RUN=_RUN,
        CLUSTERS=listing.clusters,
        PICKED=min(_PICKED, listing.clusters),
        TOKENS=_TOKENS,
        LISTERS=listing.listers,
        LISTERS_PADDED=triton.next_power_of_2(listing.listers),
        PART=part,
        WHOLE=whole,
        num_warps=_WARPS,
        **overlap(req_to_token.device),
    )


@triton.jit
def _tokens_before(listed, lister, LISTERS_PADDED: tl.constexpr):
    """What the programs before this one list; these have been started before it, so that waiting ends."""
    other = tl.arange(0, LISTERS_PADDED)
    tokens = tl.load(listed + other, mask=other < lister, other=1, volatile=True)
    while tl.min(tokens) == 0:
        tokens = tl.load(listed + other, mask=other < lister, other=1, volatile=True)
    return tl.sum(tokens - 1)


@triton.jit
def _count_up_to(ends, number, token, PICKED: tl.constexpr, TOKENS: tl.constexpr):
    """How many of the ascending ends lie at or before each token `[T]`: the cluster that it belongs to."""
    count = tl.zeros((TOKENS,), tl.int32)
    for place in range(0, number, PICKED):
        other = place + tl.arange(0, PICKED)
        end = tl.load(ends + other, mask=other < number, other=0x7FFFFFFF)
        count += tl.sum((end[:, None] <= token[None, :]).to(tl.int32), axis=0)
    return count


@triton.jit
def _list_slots(
    req_to_token,
    members,
    request_slots,
    seq_lens,
    clusters,
    clustered,
    begins,
    levels,
    tally,
    sizes,
    firsts,
    cuts,
    selected,
    lengths,
    slots,
    picked,
    listed,
    heads,
    most,
    arena_members,
    row_length,
    context,
    SINKS: tl.constexpr,
    LEVELS: tl.constexpr,
    COUNTS: tl.constexpr,
    SHARE: tl.constexpr,
    SHARE_PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    RUN: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PICKED: tl.constexpr,
    TOKENS: tl.constexpr,
    LISTERS: tl.constexpr,
    LISTERS_PADDED: tl.constexpr,
    PART: tl.constexpr,
    WHOLE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    lister = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    number = tl.load(clusters + request)
    length, fixed, always = load_extent(clustered, seq_lens, request, SINKS)
    slot_row = req_to_token + tl.load(request_slots + request).to(tl.int64) * row_length
    member = tl.arange(0, GROUP_PADDED)
    mine = member < GROUP
    row = (pair * GROUP + member).to(tl.int64)
    own = tl.arange(0, CLUSTERS)
    cluster = (own // RUN * LISTERS + lister) * RUN + own % RUN
    inside = cluster < number
    # What is from two launches before may not be known to L1 yet.
    at = pair.to(tl.int64) * most + cluster
    level = tl.load(
        levels + at[:, None] * GROUP + member[None, :],
        mask=inside[:, None] & mine[None, :], other=-1, cache_modifier=".cg",
    )  # fmt: skip
    size = tl.load(sizes + at, mask=inside, other=0, cache_modifier=".cg")
    first = tl.load(firsts + at, mask=inside, other=0, cache_modifier=".cg")
    begin = tl.load(begins + request.to(tl.int64) * most + cluster, mask=inside, other=0)
    wait_for_previous(OVERLAP)
    if number == 0:
        return

    cut = tl.load(cuts + row, mask=mine, other=LEVELS)
    asked = tl.max(tl.load(selected + row, mask=mine, other=0)) - always
    if asked * WHOLE >= (length - fixed) * PART:
        if lister == 0:
            tl.store(lengths + pair, always + length - fixed)
    else:
        taken = tl.max((level >= cut[None, :]).to(tl.int32), axis=1)
        size = tl.where(taken > 0, size, 0)
        tokens = tl.sum(size)
        listed += pair * LISTERS
        tl.store(listed + lister, tokens + 1)
        flag = (size > 0).to(tl.int32)
        picks = tl.sum(flag)
        end = tl.cumsum(size)
        picked += (pair * LISTERS + lister) * (3 * CLUSTERS)
        note = picked + tl.cumsum(flag) - 1
        tl.store(note, end, mask=flag > 0)
        tl.store(note + CLUSTERS, first - (end - size), mask=flag > 0)
        tl.store(note + 2 * CLUSTERS, begin, mask=flag > 0)
        tl.debug_barrier()  # the clusters are picked
        own_slots = slots + pair.to(tl.int64) * context
        own_members = members + head * arena_members
        before = tl.full((), -1, tl.int32)
        for done in range(0, tokens, TOKENS):
            token = done + tl.arange(0, TOKENS)
            there = token < tokens
            pick = picked + _count_up_to(picked, picks, token, PICKED, TOKENS)
            at_member = token + tl.load(pick + CLUSTERS, mask=there, other=0)
            position = tl.load(pick + 2 * CLUSTERS, mask=there, other=0)
            position += tl.load(own_members + at_member, mask=there, other=0).to(tl.int32)
            slot = tl.load(slot_row + position, mask=there, other=0)
            if before < 0:  # while these are on their way
                before = _tokens_before(listed, lister, LISTERS_PADDED)
            tl.store(own_slots + before + token, slot, mask=there)
        if lister == LISTERS - 1:
            before = _tokens_before(listed, lister, LISTERS_PADDED)
            tl.store(lengths + pair, always + before + tokens)
    share = tl.arange(0, SHARE_PADDED)
    count = lister * SHARE + share
    clear = mine[:, None] & ((share < SHARE) & (count < COUNTS))[None, :]
    at_count = row[:, None] * COUNTS + count[None, :]
    tl.store(tally + at_count, tl.zeros_like(clear.to(tl.int32)), mask=clear)
