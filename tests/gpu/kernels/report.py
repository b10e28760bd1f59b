"""The Markdown tables of a run of bench.py."""

from typing import Any

TARGETS = {"128k x 1": 7.3, "128k x 4": 12.0, "1M x 1": 20.0}
"""Dense time over the chain's, at least."""
LIMITS = {"128k x 1, no structure": 1.15, "2k x 8, short": 1.15}
"""The chain's time over dense time, at most."""


def markdown(result: dict[str, Any]) -> str:
    """Decode beside dense attention, and beside Quest; see `bench.Row`."""
    rows = result["rows"]
    lines = [
        f"{result['device']}, P = {result['threshold']}, copy bandwidth {result['bandwidth_gb_s']:.0f} GB/s. "
        "µs a layer, medians of CUDA-graph replays.",
        "",
        "| case | estimator | dense | Tactic | speed-up | target | over floor | read a KV head | selected "
        "(oracle) | share reached: mean, least, P reached | index of prefill |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['estimator']} | {row['dense_us']:.1f} | {row['chain_us']:.1f} "
            f"(+ {row['plan_us']:.1f} a step) | {row['speedup']:.2f} | {_target(row['case'])} "
            f"| {row['chain_over_floor']:.2f} | {row['read_per_kv_head']:.0f} "
            f"({row['read_per_kv_head'] / row['context']:.1%}) | {row['selected_per_query_head']:.0f} "
            f"({row['oracle_per_query_head']:.0f}) | {row['share_mean']:.3f}, {row['share_min']:.3f}, "
            f"{row['success_rate']:.0%} | {row['index_build_ms']:.1f} ms, {row['index_of_prefill']:.2%} |"
        )
    lines += [
        "",
        "Workloads: " + "; ".join(f"{row['case']}: {row['about']}" for row in rows) + ".",
        "",
        "| case | method | positions a KV head | time | share reached: mean, least, P reached |",
        "|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["quest"]):
        lines.append(
            f"| {row['case']} | Tactic, {row['estimator']} | {row['read_per_kv_head']:.0f} "
            f"| {row['chain_us']:.1f} | {_shares(row)} |"
        )
        lines += [
            f"| | Quest | {quest['budget']} | {quest['us']:.1f} | {_shares(quest)} |"
            for quest in row["quest"]
        ]
    return "\n".join(lines) + "\n"


def _target(case: str) -> str:
    if case in TARGETS:
        return f"≥ {TARGETS[case]}"
    return f"≥ {1 / LIMITS[case]:.2f}" if case in LIMITS else ""


def _shares(row: dict[str, Any]) -> str:
    return f"{row['share_mean']:.3f}, {row['share_min']:.3f}, {row['success_rate']:.0%}"
