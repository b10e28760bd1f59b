"""Quest in plain torch: the definition."""

from dataclasses import dataclass

import torch
from torch import Tensor

PAGE = 16
_AT_ONCE = 4096  # pages whose keys are gathered together


@dataclass(frozen=True)
class Pages:
    """Element-wise bounds of each page's keys; what lies beyond a request's last page is undefined.

    Attributes:
        lowest: `[B, H, P, d]`, the keys' dtype.
        highest: `[B, H, P, d]`.
    """

    lowest: Tensor
    highest: Tensor


def build_pages(k_pool: Tensor, req_to_token: Tensor, request_slots: Tensor, seq_lens: Tensor) -> Pages:
    """Bounds of all pages of a batch of B requests.

    Args:
        k_pool: `[slots, H, d]`.
        req_to_token: `[R, max_context]` integer.
        request_slots: `[B]` integer.
        seq_lens: `[B]` integer.
    """
    _, heads, dim = k_pool.shape
    most = -(-int(seq_lens.max()) // PAGE)
    shape = len(seq_lens), heads, most, dim
    pages = Pages(k_pool.new_zeros(shape), k_pool.new_zeros(shape))
    for i, (slot, length) in enumerate(zip(request_slots.tolist(), seq_lens.tolist(), strict=True)):
        for begin in range(0, length, _AT_ONCE * PAGE):
            ids = req_to_token[slot, begin : min(length, begin + _AT_ONCE * PAGE)].long()
            missing = -len(ids) % PAGE
            ids = torch.cat([ids, ids[-1:].expand(missing)])  # a key twice changes no bound
            keys = k_pool[ids].view(-1, PAGE, heads, dim)
            at = slice(begin // PAGE, begin // PAGE + len(keys))
            pages.lowest[i, :, at] = keys.amin(1).transpose(0, 1)
            pages.highest[i, :, at] = keys.amax(1).transpose(0, 1)
    return pages


def page_importance(q: Tensor, pages: Pages, length: int, scale: float) -> Tensor:
    """Importance `[H, n]` fp32 of one request's n pages; infinite for the first and the last.

    Args:
        q: `[Hq, d]`.
        pages: of this request alone, `[1, H, P, d]`.
        length: positions.
        scale: of the logits.
    """
    count = -(-length // PAGE)
    lowest, highest = (bound[0, :, :count].float() for bound in (pages.lowest, pages.highest))
    query = q.float().view(lowest.shape[0], -1, q.shape[-1]) * scale
    bound = torch.bmm(query.clamp(min=0), highest.mT) + torch.bmm(query.clamp(max=0), lowest.mT)
    importance = bound.softmax(-1).sum(1)
    importance[:, 0] = importance[:, -1] = torch.inf
    return importance


def choose_pages(q: Tensor, pages: Pages, seq_lens: Tensor, budget: int, scale: float) -> list[Tensor]:
    """The `budget` most important pages of each request, or all of fewer: `[H, ≤ budget]` int64 each.

    Args:
        q: `[B, Hq, d]`.
        pages: of the batch.
        seq_lens: `[B]` integer.
        budget: pages per KV head.
        scale: of the logits.
    """
    chosen = []
    for i, length in enumerate(seq_lens.tolist()):
        own = Pages(pages.lowest[i : i + 1], pages.highest[i : i + 1])
        importance = page_importance(q[i], own, length, scale)
        best = importance.topk(min(budget, importance.shape[1]), dim=-1).indices
        chosen.append(best.sort(-1).values)
    return chosen


def attend_pages(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, slot_ids: Tensor, chosen: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of one request over its chosen pages.

    Args:
        q: `[Hq, d]`.
        k_pool: `[slots, H, d]`.
        v_pool: `[slots, H, d]`.
        slot_ids: `[n]` integer, of all positions.
        chosen: `[H, k]` int64.
        scale: of the logits.

    Returns:
        Output `[Hq, d]` fp32 and the log-sum-exp of the logits `[Hq]` fp32.
    """
    heads = k_pool.shape[1]
    outs, sums = [], []
    for head, query in enumerate(q.float().view(heads, -1, q.shape[-1]) * scale):
        positions = (chosen[head, :, None] * PAGE + torch.arange(PAGE, device=chosen.device)).flatten()
        ids = slot_ids[positions[positions < len(slot_ids)]].long()
        logits = query @ k_pool[ids, head].float().T
        sums.append(logits.logsumexp(-1))
        outs.append(logits.softmax(-1) @ v_pool[ids, head].float())
    return torch.cat(outs), torch.cat(sums)
