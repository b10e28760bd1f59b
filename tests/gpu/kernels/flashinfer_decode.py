"""Sparse decode by FlashInfer: each (request, KV head) is a request of its own on a page-size-1 cache."""

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper
from torch import Tensor

_WORKSPACE_BYTES = 128 << 20


class FlashInferDecode:
    """A wrapper planned once, for lists of at most `bound` rows; real lengths are read at run time.

    The tensor-core kernel takes lengths from `indptr` on the device; the plan fixes the number of chunks.
    """

    def __init__(
        self,
        *,
        group: int,
        head_dim: int,
        bound: int,
        split: int | None,
        dtype: torch.dtype,
        scale: float,
        indices: Tensor,
        indptr: Tensor,
    ) -> None:
        """Plans; overwrites `indptr`.

        Args:
            group: query heads per KV head.
            head_dim: d.
            bound: rows of a list at most; longer lists are cut short.
            split: rows of a chunk; FlashInfer's choice for lists of `bound` rows if None.
            dtype: of queries, keys and values.
            scale: of the logits.
            indices: int32 buffer that lists will be in, at least B * H * bound long.
            indptr: `[B * H + 1]` int32 buffer.
        """
        pairs = indptr.shape[0] - 1
        device = indices.device
        last_page = torch.ones(pairs, dtype=torch.int32, device=device)
        self._wrapper = BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device),
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=last_page,
        )
        self._wrapper.plan(
            torch.arange(0, (pairs + 1) * bound, bound, dtype=torch.int32),
            indices[: pairs * bound],
            last_page,
            group,
            1,
            head_dim,
            1,
            q_data_type=dtype,
            kv_data_type=dtype,
            sm_scale=scale,
            fixed_split_size=split,
        )

    def run(self, q: Tensor, k_pool: Tensor, v_pool: Tensor) -> Tensor:
        """Attention `[B, Hq, d]` of the queries `[B, Hq, d]` over the lists in the buffers."""
        heads, dim = k_pool.shape[1:]
        pairs = q.shape[0] * heads
        cache = k_pool.view(-1, 1, 1, dim), v_pool.view(-1, 1, 1, dim)
        out: Tensor = self._wrapper.run(q.view(pairs, -1, dim), cache)
        return out.view_as(q)
