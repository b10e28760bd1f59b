"""How long things take in one layer."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from tactic.kernels.decode import decode
from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.index import Index
from tactic.workers.evaluation.layer import Step


def decode_ms(step: Step, index: Index, options: DecodeOptions) -> float:
    """Median milliseconds of the first query's decode step, by what serves on the device.

    Args:
        step: the layer's keys and queries.
        index: of the positions before the first query.
        options: of one request slot, on the device of the keys.
    """
    device = step.keys.device
    query = step.query[:, :, 0].flatten(0, 1)[None].to(step.keys.dtype).contiguous()  # scaled already
    length = step.first + 1
    slot_ids = torch.arange(length, dtype=torch.int32, device=device)[None]
    slot = torch.zeros(1, dtype=torch.int32, device=device)
    lengths = torch.full((1,), length, dtype=torch.int32, device=device)
    keys, values = step.keys, step.values.contiguous()
    if not keys.is_cuda:

        def on_cpu() -> object:
            return decode(
                query, keys, values, slot_ids, slot, lengths, index.table, index.arena, options, scale=1.0
            )

        return median_ms(on_cpu, cuda=False)

    from tactic.kernels.decode.runner import DecodeRunner

    runner = DecodeRunner.create(
        batch=1,
        query_heads=query.shape[1],
        kv_heads=keys.shape[1],
        head_dim=keys.shape[2],
        context=length,
        segments=index.table.unit.shape[1],
        cluster_size=index.arena.cluster_size,
        device=device,
        fit=Fit() if int(options.estimator[0]) == estimator_id(Fit.name) else None,
    )
    runner.plan(index.table, options, slot, lengths)

    def on_gpu() -> object:
        return runner.run(query, keys, values, slot_ids, index.arena, scale=1.0, sinks=options.sinks)

    return _median_graph_ms(on_gpu)


def median_ms(call: Callable[[], object], *, cuda: bool, repeats: int = 15) -> float:
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


def _median_graph_ms(call: Callable[[], object], *, calls: int = 20, repeats: int = 15) -> float:
    """As a part of a replayed CUDA graph, as in serving; the keys stay in the cache between the calls."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stubs
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = _event(), _event()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's stubs
