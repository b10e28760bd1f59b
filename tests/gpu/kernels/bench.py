"""Times the decode chain beside dense FlashInfer and Quest on one GPU: JSON, and a Markdown table beside it.

    python tests/gpu/kernels/bench.py --out decode.json
    python tests/bench/plot_decode.py decode.json          # where there is matplotlib

All times are medians of CUDA-graph replays over several layers, each with its own memory.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parent))
from captured import capture
from flashinfer_decode import FlashInferDecode
from peers.quest import PAGE, QuestRunner, build_pages
from prefill import layer_prefill_ms
from read_rows import read_rows
from report import markdown
from workload import Layer, Workload, build, logits_of

from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.analysis.cost import median_graph_ms

CASES: dict[str, dict[str, Any]] = {
    "128k x 1": {"context": 131072, "batch": 1, "layers": 6},
    "128k x 4": {"context": 131072, "batch": 4, "layers": 3},
    "32k x 8": {"context": 32768, "batch": 8, "layers": 3},
    "1M x 1": {"context": 1048576, "batch": 1, "layers": 2},
    "128k x 1, no structure": {"context": 131072, "batch": 1, "layers": 3, "structured": False},
    "2k x 8, short": {"context": 2048, "batch": 8, "layers": 6},
}
CAPTURED = "128k x 1, captured"
TAIL = 1024
QUEST_MULTIPLES = (1, 2, 4, 8)
"""Budgets of Quest, as multiples of what Tactic read: at 1 and, for an equal share, beyond."""


@dataclass
class QuestRow:
    """Quest at one budget. `us`: with the faster of its own attention and FlashInfer's."""

    budget: int
    us: float
    own_us: float
    flashinfer_us: float | None
    share_mean: float
    share_min: float
    success_rate: float


@dataclass
class Row:
    """One case and estimator. Times are µs a layer; reads are positions."""

    case: str
    estimator: str
    about: str
    context: int
    batch: int
    dense_us: float = 0.0
    chain_us: float = 0.0
    plan_us: float = 0.0
    speedup: float = 0.0
    kernels_us: dict[str, float] = field(default_factory=dict)
    flashinfer_us: float = 0.0
    read_per_kv_head: float = 0.0
    selected_per_query_head: float = 0.0
    oracle_per_query_head: float = 0.0
    share_selected: float = 0.0
    share_mean: float = 0.0
    share_min: float = 0.0
    success_rate: float = 0.0
    output_error: float = 0.0
    index_build_ms: float = 0.0
    index_of_prefill: float = 0.0
    floor_us: float = 0.0
    chain_over_floor: float = 0.0
    quest: list[QuestRow] = field(default_factory=list)


def graph_us(calls: Sequence[Callable[[], object]]) -> float:
    """Median µs of one of the calls."""
    return 1e3 * median_graph_ms(calls)


def dense_calls(work: Workload) -> list[Callable[[], object]]:
    """Dense FlashInfer, page size 1, planned for the real lengths."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, query_heads, dim = work.layers[0].q.shape
    heads = work.layers[0].k_pool.shape[1]
    device = work.layers[0].q.device
    indices = work.req_to_token.flatten().contiguous()
    context = work.req_to_token.shape[1]
    ones = torch.ones(batch, dtype=torch.int32, device=device)
    indptr = torch.arange(0, (batch + 1) * context, context, dtype=torch.int32)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(256 << 20, dtype=torch.uint8, device=device),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=indptr.to(device),
        paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=ones.clone(),
    )
    wrapper.plan(
        indptr,
        indices,
        ones,
        query_heads,
        heads,
        dim,
        1,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
        sm_scale=work.scale,
    )
    return [
        partial(wrapper.run, layer.q, (layer.k_pool.unsqueeze(1), layer.v_pool.unsqueeze(1)))
        for layer in work.layers
    ]


def measure(name: str, work: Workload, estimator: str, threshold: float, bandwidth: float) -> Row:
    """One case: what was reached, and the speed of everything.

    Args:
        name: of the case.
        work: its layers.
        estimator: of all requests.
        threshold: P.
        bandwidth: bytes that the device moves in a µs.
    """
    batch, context = work.req_to_token.shape
    first = work.layers[0]
    query_heads, dim = first.q.shape[1:]
    heads = first.k_pool.shape[1]
    runner = DecodeRunner.create(
        batch=batch,
        query_heads=query_heads,
        kv_heads=heads,
        head_dim=dim,
        context=context,
        segments=work.table.unit.shape[1],
        cluster_size=first.arena.cluster_size,
        device="cuda",
        processors=torch.cuda.get_device_properties(0).multi_processor_count,
        fit=Fit() if estimator == "fit" else None,
    )
    options = DecodeOptions.create(
        batch, threshold=threshold, estimator=estimator_id(estimator), device="cuda", min_clustered=4096
    )
    runner.plan(work.table, options, work.request_slots, work.seq_lens)
    row = Row(name, estimator, work.about, context, batch)
    row.oracle_per_query_head, row.index_build_ms = work.oracle_tokens, work.build_ms
    row.index_of_prefill = work.build_ms / layer_prefill_ms(context)

    dense = dense_calls(work)
    lists = reach(row, work, runner, options, dense)
    row.dense_us = graph_us(dense)
    chain = [partial(whole, runner, layer, work, options) for layer in work.layers]
    row.chain_us = graph_us(chain)
    row.speedup = row.dense_us / row.chain_us
    row.kernels_us = kernel_times(chain)
    row.plan_us = graph_us([partial(runner.plan, work.table, options, work.request_slots, work.seq_lens)])
    position_bytes = 4 * dim + 6  # key, value, the member's number, its slot
    cluster_bytes = dim + 16  # codes, their factor, spread, first member, size
    moved = row.read_per_kv_head * position_bytes + context / first.arena.cluster_size * cluster_bytes
    row.floor_us = batch * heads * moved / bandwidth
    row.chain_over_floor = row.chain_us / row.floor_us
    row.flashinfer_us = flashinfer_time(work, lists)
    budget = round(row.read_per_kv_head / PAGE)
    pages = -(-context // PAGE)
    for multiple in QUEST_MULTIPLES:
        if 2 <= multiple * budget < pages:
            row.quest.append(measure_quest(work, multiple * budget, threshold))
            if row.quest[-1].share_mean >= row.share_mean:
                break
    return row


def whole(runner: DecodeRunner, layer: Layer, work: Workload, options: DecodeOptions) -> Any:
    """One layer of the chain."""
    pools = layer.q, layer.k_pool, layer.v_pool, work.req_to_token, layer.arena
    return runner.run(*pools, scale=work.scale, sinks=options.sinks)


def kernel_times(calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    """µs a layer of each kernel, by the profiler; one that waits for the one before it overlaps with it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for call in calls:
            call()
        torch.cuda.synchronize()
    times = {
        event.key: event.self_device_time_total / len(calls)
        for event in profile.key_averages()
        if event.self_device_time_total > 0
    }
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def flashinfer_time(work: Workload, lists: list[torch.Tensor]) -> float:
    """FlashInfer's attention alone over the rows that were read, planned for their exact number."""
    layer = work.layers[0]
    query_heads, dim = layer.q.shape[1:]
    heads = layer.k_pool.shape[1]
    longest = max(map(len, lists))
    bounds = torch.tensor([0, *map(len, lists)], device="cuda").cumsum(0).to(torch.int32)
    indices = torch.zeros(len(lists) * longest, dtype=torch.int32, device="cuda")
    indptr = bounds.clone()
    attend_lists = FlashInferDecode(
        group=query_heads // heads,
        head_dim=dim,
        bound=longest,
        split=None,
        dtype=torch.bfloat16,
        scale=work.scale,
        indices=indices,
        indptr=indptr,
    )
    indices[: int(bounds[-1])] = torch.cat(lists)
    indptr.copy_(bounds)
    return graph_us([partial(attend_lists.run, one.q, one.k_pool, one.v_pool) for one in work.layers])


def measure_quest(work: Workload, budget: int, threshold: float) -> QuestRow:
    """Quest on the same layers, with `budget` pages for each KV head."""
    batch, context = work.req_to_token.shape
    query_heads, dim = work.layers[0].q.shape[1:]
    heads = work.layers[0].k_pool.shape[1]
    runner = QuestRunner.create(
        batch=batch,
        query_heads=query_heads,
        kv_heads=heads,
        head_dim=dim,
        context=context,
        budget=budget,
        device="cuda",
        processors=torch.cuda.get_device_properties(0).multi_processor_count,
    )
    tables = work.req_to_token, work.request_slots, work.seq_lens
    pages = [build_pages(layer.k_pool, *tables) for layer in work.layers]
    layers = list(zip(work.layers, pages, strict=True))
    shares = []
    for layer, own in layers:
        _, lse = runner.run(layer.q, layer.k_pool, layer.v_pool, *tables, own, work.scale)
        shares.append(true_share(work, layer, lse))
    own_us = graph_us(
        [
            partial(runner.run, layer.q, layer.k_pool, layer.v_pool, *tables, own, work.scale)
            for layer, own in layers
        ]
    )
    flashinfer_us = None
    if context % PAGE == 0:  # else lists end in a page that is not full
        rows = budget * PAGE
        attend_lists = FlashInferDecode(
            group=query_heads // heads,
            head_dim=dim,
            bound=rows,
            split=None,
            dtype=torch.bfloat16,
            scale=work.scale,
            indices=runner.rows.view(-1),
            indptr=torch.arange(0, (batch * heads + 1) * rows, rows, dtype=torch.int32, device="cuda"),
        )

        def by_flashinfer(layer: Layer, own: Any) -> None:
            runner.select(layer.q, *tables, own, work.scale)
            attend_lists.run(layer.q, layer.k_pool, layer.v_pool)

        flashinfer_us = graph_us([partial(by_flashinfer, layer, own) for layer, own in layers])
    share = torch.cat(shares)
    return QuestRow(
        budget * PAGE,
        min(own_us, flashinfer_us or own_us),
        own_us,
        flashinfer_us,
        float(share.mean()),
        float(share.min()),
        float((share >= threshold).float().mean()),
    )


def true_share(work: Workload, layer: Layer, lse: torch.Tensor) -> torch.Tensor:
    """Share of all attention weight `[B * Hq]` of what has the log-sum-exp `[B, Hq]`."""
    shares = []
    for request, own in enumerate(lse):
        full = logits_of(layer.q[request], layer.k_pool, work.req_to_token[request], work.scale)
        shares.append(torch.exp(own - full.logsumexp(-1)))
    return torch.cat(shares)


def reach(
    row: Row,
    work: Workload,
    runner: DecodeRunner,
    options: DecodeOptions,
    dense: list[Callable[[], object]],
) -> list[torch.Tensor]:
    """What was read, its share, and the distance to dense output, over all layers; the last one's rows."""
    shares, errors, read, selected = [], [], [], []
    for layer, dense_call in zip(work.layers, dense, strict=True):
        result = whole(runner, layer, work, options)
        shares.append(true_share(work, layer, runner.trace.lse))
        reference = dense_call()
        assert isinstance(reference, torch.Tensor)
        errors.append((result.out.float() - reference.float()).norm() / reference.float().norm())
        read.append(result.read.float().mean())
        selected.append(result.selected.float().mean())
    share = torch.cat(shares)
    row.share_mean, row.share_min = float(share.mean()), float(share.min())
    row.success_rate = float((share >= options.threshold[0]).float().mean())
    row.output_error = float(torch.stack(errors).mean())
    row.read_per_kv_head, row.selected_per_query_head = (
        float(torch.stack(values).mean()) for values in (read, selected)
    )
    row.share_selected = row.selected_per_query_head / work.req_to_token.shape[1]
    return read_rows(runner, work.req_to_token, work.request_slots, work.seq_lens, options.sinks)


def copy_bandwidth() -> float:
    """Bytes that a copy moves in a µs, both ways."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_us([lambda: target.copy_(source)])


def make(name: str, books: Path | None) -> Workload:
    """The layers of a case."""
    if name == CAPTURED:
        assert books is not None
        return capture(books, context=131072)
    settings = CASES[name]
    return build(tail=min(TAIL, settings["context"] // 2), **settings)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument(
        "--estimators", nargs="*", default=["guarded"], choices=["guarded", "centroid", "fit"]
    )
    parser.add_argument("--books", type=Path, help=f"text for the case {CAPTURED!r}, left out without it")
    names = [*CASES, CAPTURED]
    parser.add_argument("--cases", nargs="*", choices=names)
    arguments = parser.parse_args()
    cases = arguments.cases or (names if arguments.books else list(CASES))
    if CAPTURED in cases and arguments.books is None:
        parser.error(f"the case {CAPTURED!r} needs --books")
    bandwidth = copy_bandwidth()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "threshold": arguments.threshold,
        "bandwidth_gb_s": bandwidth / 1e3,
        "rows": [],
    }
    work, built = None, ""
    for name, estimator in product(cases, arguments.estimators):
        if name != built:
            work = None  # before the next one is built
            torch.cuda.empty_cache()
            print(f"{name}: building", flush=True)
            work, built = make(name, arguments.books), name
        assert work is not None
        row = measure(name, work, estimator, arguments.threshold, bandwidth)
        result["rows"].append(asdict(row))
        print(json.dumps(asdict(row)), flush=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
