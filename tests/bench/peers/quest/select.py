"""Which pages each KV head reads: bounds, importance, and the top k by two radix digits of 11 bits.

Pages whose importance differs by less than 2^-13 of it count as tied.
"""

import torch
import triton
import triton.language as tl
from peers.quest.naive import PAGE, Pages
from torch import Tensor

from tactic.kernels.launch import overlap, start_next, wait_for_previous

BLOCK = 64  # pages whose bounds a program computes
BINS = 2048
_WIDE = 1024
_LISTED = 256
_ALWAYS = tl.constexpr(2.0**20)  # of the pages that are read anyway; others have the group's size at most
_LOG2_E = 1.4426950408889634


def bound(
    bounds: Tensor,
    sums: Tensor,
    histograms: Tensor,
    counters: Tensor,
    q: Tensor,
    seq_lens: Tensor,
    pages: Pages,
    scale: float,
) -> None:
    """Upper bounds of the logits of each page, per query head; empties histograms and counters."""
    batch, query_heads, dim = q.shape
    heads, most = pages.lowest.shape[1:3]
    group = query_heads // heads
    tiles = sums.shape[2]
    _bound[(batch * heads, tiles)](
        q,
        pages.lowest,
        pages.highest,
        seq_lens,
        bounds,
        sums,
        histograms,
        counters,
        scale * _LOG2_E,
        heads,
        dim,
        most,
        bounds.shape[2],
        tiles,
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        D=max(16, triton.next_power_of_2(dim)),
        PAGES=BLOCK,
        PAGE=PAGE,
        BINS=BINS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        **overlap(q.device),
    )


@triton.jit
def _bound(
    q,
    lowest,
    highest,
    seq_lens,
    bounds,
    sums,
    histograms,
    counters,
    scale,
    heads,
    dim,
    most,
    stride,
    tiles,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    BINS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    tile = tl.program_id(1)
    d = tl.arange(0, D)
    member = tl.arange(0, ROWS)
    page = tile * PAGES + tl.arange(0, PAGES)
    count = tl.cdiv(tl.load(seq_lens + pair // heads), PAGE)
    inside = page < count
    at = (pair.to(tl.int64) * most + page)[:, None] * dim + d[None, :]
    valid = inside[:, None] & (d < dim)[None, :]
    low = tl.load(lowest + at, mask=valid, other=0.0)
    high = tl.load(highest + at, mask=valid, other=0.0)
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    if tile == 0:
        tl.store(histograms + pair * 2 * BINS + tl.arange(0, 2 * BINS), tl.zeros((2 * BINS,), tl.int32))
        tl.store(counters + pair * 2 + tl.arange(0, 2), tl.zeros((2,), tl.int32))
    row = pair * GROUP + member
    mine = member < GROUP
    query = tl.load(q + row[:, None] * dim + d[None, :], mask=mine[:, None] & (d < dim)[None, :], other=0.0)
    above = tl.maximum(query, 0.0).to(high.dtype)
    below = tl.minimum(query, 0.0).to(low.dtype)
    upper = tl.dot(above, tl.trans(high), input_precision=PRECISION)
    upper = tl.dot(below, tl.trans(low), upper, input_precision=PRECISION) * scale
    upper = tl.where(inside[None, :], upper, -float("inf"))
    tl.store(
        bounds + row[:, None].to(tl.int64) * stride + page[None, :],
        upper,
        mask=mine[:, None] & inside[None, :],
    )
    peak = tl.max(upper, axis=1)
    peak = tl.where(peak == -float("inf"), 0.0, peak)
    weight = tl.sum(tl.exp2(upper - peak[:, None]), axis=1)
    total = tl.where(weight > 0, peak + tl.log2(tl.where(weight > 0, weight, 1.0)), -float("inf"))
    tl.store(sums + row * tiles + tile, total, mask=mine)


def weigh(keys: Tensor, histograms: Tensor, bounds: Tensor, sums: Tensor, seq_lens: Tensor) -> None:
    """Importance of each page to a KV head, and its histogram by the first digit."""
    batch, heads, most = keys.shape
    tiles = sums.shape[2]
    _weigh[(batch * heads, triton.cdiv(most, _WIDE))](
        bounds,
        sums,
        seq_lens,
        keys,
        histograms,
        heads,
        most,
        tiles,
        GROUP=bounds.shape[1] // heads,
        PAGES=_WIDE,
        TILES=triton.next_power_of_2(tiles),
        PAGE=PAGE,
        BINS=BINS,
        num_warps=4,
        **overlap(keys.device),
    )


@triton.jit
def _weigh(
    bounds,
    sums,
    seq_lens,
    keys,
    histograms,
    heads,
    most,
    tiles,
    GROUP: tl.constexpr,
    PAGES: tl.constexpr,
    TILES: tl.constexpr,
    PAGE: tl.constexpr,
    BINS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    page = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    count = tl.cdiv(tl.load(seq_lens + pair // heads), PAGE)
    inside = page < count
    tile = tl.arange(0, TILES)
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    importance = tl.zeros((PAGES,), tl.float32)
    for member in tl.static_range(GROUP):
        row = (pair * GROUP + member).to(tl.int64)
        parts = tl.load(sums + row * tiles + tile, mask=tile < tiles, other=-float("inf"))
        peak = tl.max(parts)
        total = peak + tl.log2(tl.sum(tl.exp2(parts - peak)))
        upper = tl.load(bounds + row * most + page, mask=inside, other=-float("inf"))
        importance += tl.exp2(upper - total)
    importance = tl.where((page == 0) | (page == count - 1), _ALWAYS, importance)
    key = importance.to(tl.int32, bitcast=True)
    tl.store(keys + pair.to(tl.int64) * most + page, key, mask=inside)
    _add_histogram(histograms + pair * 2 * BINS, key >> 20, inside, BINS)


@triton.jit
def _add_histogram(target, digit, inside, BINS: tl.constexpr):
    counts = tl.histogram(tl.where(inside, digit, 0), BINS, mask=inside)
    tl.atomic_add(target + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _cut(histogram, wanted, BINS: tl.constexpr):
    """The bin that holds the `wanted`-th largest, and how many are wanted of that bin."""
    counts = tl.load(histogram + tl.arange(0, BINS))
    reached = tl.cumsum(counts, 0, reverse=True)
    place = tl.sum((reached >= wanted).to(tl.int32)) - 1
    above = tl.sum(tl.where(tl.arange(0, BINS) > place, counts, 0))
    return place, wanted - above


def refine(histograms: Tensor, keys: Tensor, seq_lens: Tensor, budget: int) -> None:
    """Histogram by the second digit of those pages that are in the cut's bin of the first."""
    batch, heads, most = keys.shape
    _refine[(batch * heads, triton.cdiv(most, _WIDE))](
        keys,
        seq_lens,
        histograms,
        budget,
        heads,
        most,
        PAGES=_WIDE,
        PAGE=PAGE,
        BINS=BINS,
        num_warps=4,
        **overlap(keys.device),
    )


@triton.jit
def _refine(
    keys,
    seq_lens,
    histograms,
    budget,
    heads,
    most,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    BINS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    page = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    count = tl.cdiv(tl.load(seq_lens + pair // heads), PAGE)
    inside = page < count
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    own = histograms + pair * 2 * BINS
    place, _ = _cut(own, tl.minimum(budget, count), BINS)
    key = tl.load(keys + pair.to(tl.int64) * most + page, mask=inside, other=0)
    _add_histogram(own + BINS, (key >> 9) & (BINS - 1), inside & ((key >> 20) == place), BINS)


def list_rows(
    rows: Tensor,
    counters: Tensor,
    histograms: Tensor,
    keys: Tensor,
    req_to_token: Tensor,
    request_slots: Tensor,
    seq_lens: Tensor,
    budget: int,
) -> None:
    """Pool rows of the best pages, in any order; of tied ones whichever come first."""
    batch, heads, most = keys.shape
    _list_rows[(batch * heads, triton.cdiv(most, _LISTED))](
        keys,
        histograms,
        counters,
        req_to_token,
        request_slots,
        seq_lens,
        rows,
        budget,
        heads,
        most,
        req_to_token.stride(0),
        PAGES=_LISTED,
        PAGE=PAGE,
        BINS=BINS,
        num_warps=4,
        **overlap(keys.device),
    )


@triton.jit
def _list_rows(
    keys,
    histograms,
    counters,
    req_to_token,
    request_slots,
    seq_lens,
    rows,
    budget,
    heads,
    most,
    context,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    BINS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    request = pair // heads
    page = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    length = tl.load(seq_lens + request)
    count = tl.cdiv(length, PAGE)
    inside = page < count
    slot_row = req_to_token + tl.load(request_slots + request).to(tl.int64) * context
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    own = histograms + pair * 2 * BINS
    wanted = tl.minimum(budget, count)
    first, in_first = _cut(own, wanted, BINS)
    second, tied = _cut(own + BINS, in_first, BINS)
    key = tl.load(keys + pair.to(tl.int64) * most + page, mask=inside, other=0) >> 9
    cut = first * BINS + second
    better = (inside & (key > cut)).to(tl.int32)
    equal = (inside & (key == cut)).to(tl.int32)
    better_at = tl.atomic_add(counters + pair * 2, tl.sum(better), sem="relaxed")
    equal_at = tl.atomic_add(counters + pair * 2 + 1, tl.sum(equal), sem="relaxed")
    place = better_at + tl.cumsum(better, 0) - 1
    equal_place = equal_at + tl.cumsum(equal, 0) - 1
    place = tl.where(equal > 0, wanted - tied + equal_place, place)
    taken = (better > 0) | ((equal > 0) & (equal_place < tied))
    token = tl.arange(0, PAGE)
    position = page[:, None] * PAGE + token[None, :]
    known = taken[:, None] & (position < length)
    slot = tl.load(slot_row + position, mask=known, other=0)
    row = tl.where(known, slot * heads + pair % heads, -1)
    target = pair.to(tl.int64) * budget * PAGE + place[:, None] * PAGE + token[None, :]
    tl.store(rows + target, row, mask=taken[:, None] & (token >= 0)[None, :])
