"""How long decode steps take, and other calls."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from tactic.kernels.decode import decode
from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.index import Index
from tactic.workers.evaluation.layer import Step


def decode_ms(steps: Sequence[Step], indexes: Sequence[Index], options: DecodeOptions) -> float:
    """Median milliseconds of the first query's decode step, by what serves on the device; mean of the layers.

    All layers run in turn, each on its own keys, so that none finds its keys in a cache.

    Args:
        steps: keys and queries of the layers.
        indexes: of the positions before the first query, as many, with clusters of the same size.
        options: of one request slot, on the device of the keys.
    """
    device, length = steps[0].keys.device, steps[0].first + 1
    slot_ids = torch.arange(length, dtype=torch.int32, device=device)[None]
    slot = torch.zeros(1, dtype=torch.int32, device=device)
    lengths = torch.full((1,), length, dtype=torch.int32, device=device)
    queries = [
        step.query[:, :, 0].flatten(0, 1)[None].to(step.keys.dtype).contiguous()  # scaled already
        for step in steps
    ]
    layers = list(zip(queries, steps, indexes, strict=True))
    if device.type == "cpu":

        def on_cpu() -> None:
            for query, step, index in layers:
                pool = query, step.keys, step.values, slot_ids, slot, lengths
                decode(*pool, index.table, index.arena, options, scale=1.0)

        return median_ms(on_cpu, cuda=False, repeats=5) / len(layers)

    from tactic.kernels.decode.runner import DecodeRunner

    runner = DecodeRunner.create(
        batch=1,
        query_heads=queries[0].shape[1],
        kv_heads=steps[0].keys.shape[1],
        head_dim=steps[0].keys.shape[2],
        context=length,
        segments=indexes[0].table.unit.shape[1],
        cluster_size=indexes[0].arena.cluster_size,
        device=device,
        fit=Fit() if int(options.estimator[0]) == estimator_id(Fit.name) else None,
    )
    runner.plan(indexes[0].table, options, slot, lengths)

    def on_gpu(query: Tensor, step: Step, index: Index) -> None:
        pool = query, step.keys, step.values, slot_ids
        runner.run(*pool, index.arena, scale=1.0, sinks=options.sinks)

    return median_graph_ms([partial(on_gpu, *layer) for layer in layers])


def median_ms(call: Callable[[], object], *, cuda: bool, repeats: int) -> float:
    """Median milliseconds of a call, the first one not counted."""
    times = []
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.synchronize()
        begin = perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append((perf_counter() - begin) * 1e3)
    return median(times[1:])


def median_graph_ms(calls: Sequence[Callable[[], object]], *, repeats: int = 30) -> float:
    """Median milliseconds of a call: all calls, in turn, in one replayed CUDA graph, as in serving.

    Args:
        calls: each on memory of its own (one per layer), so that none finds its data in a cache.
        repeats: replays.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stubs
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in [*calls, *calls]:  # compiled by the first round
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = _event(), _event()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's stubs
