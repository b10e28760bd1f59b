# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Union over a group, the pool rows of what it selects, and attention over them."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import WORD, Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.sparse_decode.partials import Partials, fold, group_shape, load_group, store_part
from tactic.kernels.union.naive import NEARLY_ALL

_WORDS = 128  # of masks: what a program looks through to find its share
_EXPANDED = 512  # places of a list that are filled at once
_TOKENS = 64
_WARPS = 4
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


def teams(clusters: int) -> int:
    """Groups into which a KV head's programs divide up to `clusters` clusters."""
    return -(-clusters // (WORD * _WORDS))


def attend(
    partials: Partials,
    reads: Reads,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
) -> None:
    """Attends to the clusters that any head of a group selects.

    The programs of a KV head share its clusters out to teams, and each team its clusters' tokens evenly to
    its programs. Where some head selects nearly everything, all is read, which needs no list of clusters.

    Args:
        partials: filled below `partials.splits`, which must be at least `teams(K_max)`.
        reads: `lengths` added to, `rows` filled.
        scores: of the layer.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
    """
    batch, _, dim = q.shape
    heads = k_pool.shape[1]
    context = reads.rows.shape[2]
    words = reads.masks.shape[2]
    part, whole = NEARLY_ALL
    _attend[(batch * heads, partials.splits)](
        q,
        k_pool,
        v_pool,
        req_to_token,
        arena.members,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.begins,
        scores.sizes,
        scores.firsts,
        reads.masks,
        reads.selected,
        reads.lengths,
        reads.rows,
        partials.out,
        partials.lse,
        scale,
        heads,
        dim,
        scores.sizes.shape[2],
        words,
        arena.members.shape[1],
        req_to_token.stride(0),
        context,
        SINKS=sinks,
        WORD=WORD,
        WORDS=min(_WORDS, triton.next_power_of_2(words)),
        EXPANDED=min(_EXPANDED, triton.next_power_of_2(context)),
        TOKENS=_TOKENS,
        SPLITS=partials.splits,
        PARTS=partials.splits + partials.readers,
        PART=part,
        WHOLE=whole,
        num_stages=_STAGES,
        num_warps=_WARPS,
        **group_shape(q, heads),
        **overlap(q.device),
    )


@triton.jit
def _later(number, start, other_number, other_start):
    return tl.maximum(number, other_number), tl.maximum(start, other_start)


@triton.jit
def _union(masks, sizes, word, count, words, GROUP: tl.constexpr, WORD: tl.constexpr):
    """Tokens of each cluster that some head of the group selects."""
    taken = tl.zeros(word.shape, tl.int32)
    for member in tl.static_range(GROUP):
        taken |= tl.load(masks + member * words + word, mask=word * WORD < count, other=0)
    return tl.where((taken[:, None] >> tl.arange(0, WORD)[None, :]) & 1 != 0, sizes, 0)


@triton.jit
def _list_positions(rows, slot_row, begin, tokens, heads, head, EXPANDED: tl.constexpr):
    """Lists the pool rows of consecutive positions."""
    for first in range(0, tokens, EXPANDED):
        token = first + tl.arange(0, EXPANDED)
        inside = token < tokens
        slot = tl.load(slot_row + begin + token, mask=inside, other=0)
        tl.store(rows + token, slot * heads + head, mask=inside)


@triton.jit
def _list_clusters(
    rows, slot_row, members, firsts, begins, cluster, read, ends, begin, tokens, heads, head,
    EXPANDED: tl.constexpr,
):  # fmt: skip
    """Lists the pool rows of tokens `begin` … `begin + tokens` of clusters whose tokens end at `ends`.

    Each cluster leaves its number at its first token of the list; a running maximum tells every token the
    cluster that it belongs to.
    """
    for first in range(0, tokens, EXPANDED):
        token = first + tl.arange(0, EXPANDED)
        tl.store(rows + token, tl.zeros((EXPANDED,), tl.int32), mask=token < tokens)
    tl.debug_barrier()  # the list is clear
    offset = ends - read - begin  # where a cluster's tokens begin in the list; negative for at most one
    mine = (read > 0) & (offset < tokens) & (ends > begin)
    tl.store(rows + tl.maximum(offset, 0), cluster + 1, mask=mine)
    skipped = tl.max(tl.max(tl.where(mine, -offset, 0), axis=1), axis=0)
    tl.debug_barrier()  # the marks are set
    last_number = 0
    last_start = 0
    for first in range(0, tokens, EXPANDED):
        token = first + tl.arange(0, EXPANDED)
        inside = token < tokens
        number = tl.load(rows + token, mask=inside, other=0)
        number, start = tl.associative_scan((number, tl.where(number > 0, token, 0)), 0, _later)
        number = tl.maximum(number, last_number)
        start = tl.maximum(start, last_start)
        last_number = tl.max(number)
        last_start = tl.max(start)
        member = token - start + tl.where(start == 0, skipped, 0)
        member += tl.load(firsts + number - 1, mask=inside, other=0)
        position = tl.load(begins + number - 1, mask=inside, other=0)
        position += tl.load(members + member, mask=inside, other=0).to(tl.int32)
        slot = tl.load(slot_row + position, mask=inside, other=0)
        tl.store(rows + token, slot * heads + head, mask=inside)


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    req_to_token,
    members,
    slots,
    seq_lens,
    clusters,
    clustered,
    begins,
    sizes,
    firsts,
    masks,
    selected,
    lengths,
    rows,
    partial,
    partial_lse,
    scale,
    heads,
    dim,
    most,
    words,
    arena_members,
    row_length,
    context,
    SINKS: tl.constexpr,
    WORD: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WORDS: tl.constexpr,
    EXPANDED: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    request = pair // heads
    head = pair % heads
    count = tl.load(clusters + request)
    length = tl.load(clustered + request)
    fixed = tl.minimum(length, SINKS)
    always = fixed + tl.load(seq_lens + request) - length
    slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * row_length
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    teams = tl.maximum(tl.cdiv(count, WORD * WORDS), 1)
    team = split % teams
    word = team + tl.arange(0, WORDS) * teams
    cluster = word[:, None] * WORD + tl.arange(0, WORD)[None, :]
    at = pair.to(tl.int64) * most
    # Scores are from two launches before: L1 may not know them yet.
    size = tl.load(sizes + at + cluster, mask=cluster < count, other=0, cache_modifier=".cg")
    wait_for_previous(OVERLAP)

    read = _union(masks + pair.to(tl.int64) * GROUP * words, size, word, count, words, GROUP, WORD)
    by_word = tl.sum(read, axis=1)
    ends = (tl.cumsum(by_word, axis=0) - by_word)[:, None] + tl.cumsum(read, axis=1)
    total = tl.sum(by_word)
    asked = 0
    for member in tl.static_range(GROUP):
        asked = tl.maximum(asked, tl.load(selected + pair * GROUP + member) - always)
    everything = asked * WHOLE >= (length - fixed) * PART
    if everything:
        total = length - fixed
        teams = 1
        team = 0
    sharing = (SPLITS - team + teams - 1) // teams  # programs of the team
    quota = tl.cdiv(tl.cdiv(total, sharing), TOKENS) * TOKENS
    begin = tl.minimum(split // teams * quota, total)
    tokens = tl.minimum(quota, total - begin)
    rows += pair.to(tl.int64) * context
    if teams == 1:
        rows += always + begin
        if split == 0:
            tl.store(lengths + pair, always + total)
    else:
        rows += tl.atomic_add(lengths + pair, tokens, sem="relaxed")
    if everything:
        _list_positions(rows, slot_row, fixed + begin, tokens, heads, head, EXPANDED)
    else:
        _list_clusters(
            rows, slot_row, members + head.to(tl.int64) * arena_members, firsts + at,
            begins + request.to(tl.int64) * most, cluster, read, ends, begin, tokens, heads, head, EXPANDED,
        )  # fmt: skip
    tl.debug_barrier()  # the list is written

    d = tl.arange(0, D)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < tokens
        source = tl.load(rows + token, mask=inside, other=0).to(tl.int64)
        at_row = source[:, None] * dim + d[None, :]
        valid = inside[:, None] & (d < dim)[None, :]
        key = tl.load(k_pool + at_row, mask=valid, other=0.0)
        value = tl.load(v_pool + at_row, mask=valid, other=0.0)
        peak, weight, sums = fold(query, key, value, inside, scale, peak, weight, sums, PRECISION)
    store_part(partial, partial_lse, pair, split, PARTS, dim, peak, weight, sums, GROUP, ROWS, D)
