"""Draws what tests/gpu/kernels/bench.py has measured: `python tests/bench/plot_decode.py decode.json`."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of bench.py")
    parser.add_argument("--out", type=Path, help="image [default: beside the JSON, .png]")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text())
    figure = draw(result)
    out = arguments.out or arguments.result.with_suffix(".png")
    figure.savefig(out, dpi=150)
    print(out)


def draw(result: dict[str, Any]) -> plt.Figure:
    """Speed-ups by case, and time by share reached beside Quest."""
    rows = result["rows"]
    with_quest = [row for row in rows if row["quest"]]
    figure, axes = plt.subplots(1, 1 + len(with_quest), figsize=(6 + 3.2 * len(with_quest), 4))
    first, *others = axes if with_quest else [axes]
    labels = [f"{row['case']}\n{row['estimator']}" for row in rows]
    bars = first.barh(labels, [row["speedup"] for row in rows], color="tab:blue")
    first.bar_label(bars, [f"{row['speedup']:.1f}x, {row['share_mean']:.2f}" for row in rows], padding=3)
    first.axvline(1, color="black", linewidth=0.8)
    first.invert_yaxis()
    first.margins(x=0.25)
    first.set_xlabel("dense FlashInfer / Tactic (and attention share reached)")
    for axis, row in zip(others, with_quest, strict=True):
        quest = row["quest"]
        axis.plot([q["share_mean"] for q in quest], [q["us"] for q in quest], "o-", label="Quest")
        axis.plot(row["share_mean"], row["chain_us"], "s", label="Tactic")
        axis.axhline(row["dense_us"], color="black", linewidth=0.8, label="dense")
        axis.set_title(row["case"], fontsize=9)
        axis.set_xlabel("attention share reached")
        axis.set_ylabel("µs a layer")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    figure.suptitle(f"Decode attention, {result['device']}, P = {result['threshold']}")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
