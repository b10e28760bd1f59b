"""Times the decode chain against dense FlashInfer on one GPU; prints a table, writes JSON.

python tests/gpu/kernels/bench.py --out results.json
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parent))
from read_rows import read_rows
from timing import graph_us
from workload import Layer, Workload, build, logits_of

from tactic.kernels.decode import DecodeResult
from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.estimators.triton import sample
from tactic.kernels.index import DecodeOptions
from tactic.kernels.ranking.triton import score
from tactic.kernels.selection.fit_triton import find_fit_cuts
from tactic.kernels.selection.triton import find_cuts
from tactic.kernels.sparse_decode.always import attend_always
from tactic.kernels.sparse_decode.flashinfer import FlashInferDecode
from tactic.kernels.sparse_decode.triton import attend

CASES = {  # name: context, batch, layers, structured
    "128k x 1": (131072, 1, 6, True),
    "128k x 4": (131072, 4, 3, True),
    "32k x 8": (32768, 8, 3, True),
    "1M x 1": (1048576, 1, 2, True),
    "128k x 1, no structure": (131072, 1, 3, False),
    "2k x 8, short": (2048, 8, 6, True),
}


@dataclass
class Row:
    case: str
    estimator: str
    dense_us: float = 0.0
    chain_us: float = 0.0
    speedup: float = 0.0
    stages_us: dict[str, float] = field(default_factory=dict)
    flashinfer_us: float = 0.0
    read_per_kv_head: float = 0.0
    selected_per_query_head: float = 0.0
    oracle_per_query_head: float = 0.0
    share_mean: float = 0.0
    share_min: float = 0.0
    success_rate: float = 0.0
    output_error: float = 0.0
    index_build_ms: float = 0.0
    floor_us: float = 0.0


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


def workload(name: str) -> Workload:
    context, batch, layers, structured = CASES[name]
    tail = min(1024, context // 2)
    return build(context=context, batch=batch, layers=layers, structured=structured, tail=tail)


def measure(name: str, work: Workload, estimator: str, threshold: float) -> Row:
    """One case: speed of every stage, and what was reached."""
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
    row = Row(name, estimator, oracle_per_query_head=work.oracle_tokens, index_build_ms=work.build_ms)

    dense = dense_calls(work)
    reach(row, work, runner, options, dense)
    row.dense_us = graph_us(dense)
    row.chain_us = graph_us([partial(whole, runner, layer, work, options) for layer in work.layers])
    row.speedup = row.dense_us / row.chain_us
    row.stages_us = stage_times(runner, work, options)
    row.stages_us["plan (once a step)"] = graph_us(
        [partial(runner.plan, work.table, options, work.request_slots, work.seq_lens)]
    )
    moved = row.read_per_kv_head * heads * batch * dim * 4
    index_bytes = batch * heads * context // first.arena.cluster_size * (dim * 2 + 12)
    row.floor_us = (moved + index_bytes) / 3.0e6  # 3.0 TB/s, an H100's copy bandwidth
    row.flashinfer_us = flashinfer_time(runner, work, options)
    return row


def whole(
    runner: DecodeRunner, layer: Layer, work: Workload, options: DecodeOptions
) -> tuple[DecodeResult, torch.Tensor]:
    return runner.run(
        layer.q,
        layer.k_pool,
        layer.v_pool,
        work.req_to_token,
        layer.arena,
        scale=work.scale,
        sinks=options.sinks,
    )


def stage_times(runner: DecodeRunner, work: Workload, options: DecodeOptions) -> dict[str, float]:
    """Each launch alone, over all layers, on the buffers of a whole run."""
    whole(runner, work.layers[-1], work, options)
    out = torch.empty_like(work.layers[0].q)
    lse = torch.empty(out.shape[:2], device="cuda")

    def always_layer(layer: Layer) -> None:
        attend_always(
            runner.partials,
            runner.reads,
            runner.step,
            layer.q,
            layer.k_pool,
            layer.v_pool,
            work.req_to_token,
            scale=work.scale,
            sinks=options.sinks,
        )

    def score_layer(layer: Layer) -> None:
        always_layer(layer)
        score(
            runner.scores,
            runner.step,
            layer.arena,
            layer.q,
            scale=work.scale,
            sinks=options.sinks,
            scorers=runner.scorers,
        )

    def cut_layer(_: Layer) -> None:
        find_cuts(runner.cuts, runner.scores, runner.partials, runner.step, sinks=options.sinks)

    def sample_layer(layer: Layer) -> None:
        assert runner.samples is not None
        sample(
            runner.samples,
            runner.scores,
            runner.step,
            layer.arena,
            layer.q,
            layer.k_pool,
            work.req_to_token,
            Fit(),
            scale=work.scale,
            sinks=options.sinks,
            samplers=runner.partials.splits,
        )

    def fit_cut_layer(_: Layer) -> None:
        assert runner.samples is not None
        find_fit_cuts(runner.cuts, runner.samples, runner.scores, runner.partials, runner.step)

    def attend_layer(layer: Layer) -> None:
        runner.reads.arrived.zero_()
        runner.reads.lengths.fill_(always)
        attend(
            runner.partials,
            runner.reads,
            runner.scratch,
            runner.cuts,
            runner.scores,
            runner.step,
            layer.arena,
            layer.q,
            layer.k_pool,
            layer.v_pool,
            work.req_to_token,
            scale=work.scale,
            out=out,
            lse=lse,
        )

    always = int(work.seq_lens[0] - runner.step.clustered[0]) + options.sinks
    stages = {
        "sinks and tail": always_layer,
        "with score": score_layer,
        "cut": cut_layer,
        "attend (and two fills)": attend_layer,
    }
    if runner.fit is not None:
        stages |= {"sample": sample_layer, "fit cut": fit_cut_layer}
    return {
        name: graph_us([partial(stage, layer) for layer in work.layers]) for name, stage in stages.items()
    }


def flashinfer_time(runner: DecodeRunner, work: Workload, options: DecodeOptions) -> float:
    """FlashInfer's attention alone over the same rows, planned for their exact number."""
    layer = work.layers[0]
    query_heads, dim = layer.q.shape[1:]
    heads = layer.k_pool.shape[1]
    whole(runner, layer, work, options)
    lists = read_rows(runner, work.req_to_token, work.request_slots, work.seq_lens, options.sinks)
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


def reach(
    row: Row,
    work: Workload,
    runner: DecodeRunner,
    options: DecodeOptions,
    dense: list[Callable[[], object]],
) -> None:
    """Share of the true weight that was read, and the distance to dense output, over all layers."""
    shares, errors, read, selected = [], [], [], []
    for layer, dense_call in zip(work.layers, dense, strict=True):
        result, lse = whole(runner, layer, work, options)
        for request in range(len(lse)):
            full = logits_of(layer.q[request], layer.k_pool, work.req_to_token[request], work.scale)
            shares.append(torch.exp(lse[request] - full.logsumexp(-1)))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument(
        "--estimators", nargs="*", default=["guarded"], choices=["guarded", "centroid", "fit"]
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    rows = []
    work, built = None, ""
    for name, estimator in product(arguments.cases, arguments.estimators):
        if name != built:
            work = None  # before the next one is built
            torch.cuda.empty_cache()
            work, built = workload(name), name
        row = measure(name, work, estimator, arguments.threshold)
        rows.append(asdict(row))
        print(
            f"{name:22} {estimator:8} dense {row.dense_us:7.1f} us  chain {row.chain_us:7.1f} us"
            f"  {row.speedup:5.2f} x"
            f"  floor {row.floor_us:6.1f} us  read {row.read_per_kv_head:7.0f}"
            f"  selected {row.selected_per_query_head:6.0f} (oracle {row.oracle_per_query_head:5.0f})"
            f"  share {row.share_mean:.3f} (min {row.share_min:.3f}, ok {row.success_rate:.2f})"
            f"  error {row.output_error:.4f}  index {row.index_build_ms:.1f} ms",
            flush=True,
        )
        stages = ", ".join(f"{name} {time:.1f}" for name, time in row.stages_us.items())
        print(f"    {stages}; FlashInfer's attention over the same rows {row.flashinfer_us:.1f}", flush=True)
        properties = torch.cuda.get_device_properties(0)
        arguments.out.write_text(
            json.dumps({"device": properties.name, "threshold": arguments.threshold, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
