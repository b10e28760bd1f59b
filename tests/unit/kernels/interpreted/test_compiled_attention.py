"""What the decode worker puts around the kernels: runners by batch size, counts by layer."""

import dataclasses
from collections.abc import Callable

import torch

from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Fit, estimator_id
from tactic.workers.sglang.attention import CompiledAttention, Measured

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest


class Pool:
    """The two buffers that are asked of SGLang's KV pool."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.values


def test_batches_of_any_order_and_size_read_what_a_runner_of_their_own_reads(
    make_scene: Maker, device: str
) -> None:
    scene = make_scene([([300], 30), ([200], 2), ([64], 1)], seed=1)
    options = scene.options(threshold=0.6, estimator=estimator_id("centroid"))
    there = scene.to(device)
    moved = type(options)(
        options.threshold.to(device),
        options.estimator.to(device),
        options.dense.to(device),
        options.sinks,
        options.min_clustered,
    )
    attention = CompiledAttention(
        Pool(there.k_pool, there.v_pool),
        there.req_to_token,
        [there.arena, there.arena],
        there.table,
        moved,
        query_heads=scene.q.shape[1],
        dtype=scene.q.dtype,
        processors=6,
        fit=Fit(),
    )
    for batch in (2, 1, 3, 2):
        head = dataclasses.replace(
            there,
            q=there.q[:batch],
            request_slots=there.request_slots[:batch],
            seq_lens=there.seq_lens[:batch],
        )
        own = DecodeRunner.create(
            batch=batch,
            query_heads=6,
            kv_heads=2,
            head_dim=16,
            context=scene.req_to_token.shape[1],
            segments=8,
            cluster_size=32,
            device=device,
            processors=6,
        )
        own.plan(head.table, moved, head.request_slots, head.seq_lens)
        pools = there.k_pool, there.v_pool, there.req_to_token, there.arena
        expected = own.run(head.q, *pools, scale=scene.scale, sinks=moved.sinks)
        attention.begin(head.request_slots, head.seq_lens, measure=False)
        for layer in range(2):
            assert torch.equal(attention.layer(layer, head.q, scene.scale), expected.out)
        assert torch.equal(attention.read(batch), expected.read.expand(2, -1, -1))
        last = Measured(batch - 1, int(head.request_slots[-1]), int(head.seq_lens[-1]))
        shares = attention.shares(batch, [last])
        share = own.trace.share(batch - 1, there.k_pool, there.slot_ids(batch - 1), scene.scale)
        torch.testing.assert_close(shares, share.expand(2, 1, -1))
        assert (expected.read < scene.seq_lens[:batch, None].to(device)).any(), "the case must be sparse"
