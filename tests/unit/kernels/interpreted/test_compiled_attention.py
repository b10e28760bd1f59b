"""What the decode worker puts around the kernels: runners by batch size, counts by layer."""

from collections.abc import Callable

import torch

from tactic.kernels.estimators import Fit, estimator_id
from tactic.workers.sglang.attention import CompiledAttention

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest


class Pool:
    """The two buffers that are asked of SGLang's KV pool."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.values


def test_batches_of_any_order_and_size_read_what_the_definition_reads(make_scene: Maker, device: str) -> None:
    scene = make_scene([([300], 30), ([200], 2), ([64], 1)], seed=1)
    options = scene.options(threshold=0.6, estimator=estimator_id("centroid"))
    expected = scene.decode(options)
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
        processors=6,
        fit=Fit(),
    )
    for batch in (2, 1, 3, 2):
        attention.begin(there.request_slots[:batch], there.seq_lens[:batch], measure=False)
        for layer in range(2):
            out = attention.layer(layer, there.q[:batch], scene.scale)
            torch.testing.assert_close(out.cpu(), expected.out[:batch], rtol=1e-4, atol=1e-5)
        assert torch.equal(attention.read(batch).cpu(), expected.read[:batch].expand(2, -1, -1))
