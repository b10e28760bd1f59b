"""Times the decode chain with other launch constants than those it has, one at a time and in given sets.

    python tests/gpu/kernels/tune.py --case "128k x 1" --set attend.TOKENS=32 attend.WARPS=2 --seconds 120

Without `--set`, the candidates below are tried one after the other, each beside the constants as they are.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench import CASES, TAIL, graph_us, whole
from workload import Workload, build

from tactic.kernels.decode import runner as decode_runner
from tactic.kernels.index import DecodeOptions
from tactic.kernels.index_map import triton as listing
from tactic.kernels.ranking import triton as ranking
from tactic.kernels.selection import triton as selection
from tactic.kernels.sparse_decode import always, merge
from tactic.kernels.sparse_decode import triton as attend

PLACES: dict[str, ModuleType] = {
    "always": always,
    "score": ranking,
    "select": selection,
    "list": listing,
    "attend": attend,
    "merge": merge,
    "runner": decode_runner,
}
CANDIDATES = (
    *(f"attend.TOKENS={n}" for n in (32, 64)),
    *(f"attend.WARPS={n}" for n in (2, 8)),
    *(f"attend.STAGES={n}" for n in (3, 4, 7)),
    *(f"list.PICKED={n}" for n in (16, 64)),
    *(f"list.TOKENS={n}" for n in (256, 1024)),
    *(f"runner.LIST_WAVES={n}" for n in (2, 8)),
    *(f"runner.WAVES={n}" for n in (1, 3)),
    "runner.MOST_SPLITS=64",
    *(f"runner.SCORE_WAVES={n}" for n in (8, 12, 32)),
    "score.REGISTERS=168",
    *(f"select.WARPS={n}" for n in (4, 16)),
    *(f"merge.WARPS={n}" for n in (2, 8)),
    "always.TOKENS=128",
    *(f"always.WARPS={n}" for n in (2, 8)),
)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES], default="128k x 1")
    parser.add_argument("--set", nargs="+", metavar="PLACE.NAME=VALUE", help="constants of one more trial")
    parser.add_argument("--seconds", type=float, default=120, help="no trial begins later [default: 120]")
    arguments = parser.parse_args()
    started = time.monotonic()
    work = build(**CASES[arguments.case], tail=TAIL)
    before = chain_us(work)
    print(f"{arguments.case}, {torch.cuda.get_device_name()}: {before:.1f} µs a layer", flush=True)
    for trial in [arguments.set] if arguments.set else [[each] for each in CANDIDATES]:
        if time.monotonic() - started > arguments.seconds:
            print("out of time")
            return
        constants = [parse(each) for each in trial]
        old = [getattr(place, name) for place, name, _ in constants]
        try:
            for place, name, value in constants:
                setattr(place, name, value)
            now = chain_us(work)
            print(f"{' '.join(trial)}: {now:.1f} µs, {100 * (now / before - 1):+.0f} %", flush=True)
        except Exception as error:  # a tile that does not fit is an answer, too
            print(f"{' '.join(trial)}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        finally:
            for (place, name, _), value in zip(constants, old, strict=True):
                setattr(place, name, value)


def parse(text: str) -> tuple[ModuleType, str, int]:
    """Module, constant and value of `place.NAME=value`."""
    place, _, rest = text.partition(".")
    name, _, value = rest.partition("=")
    if place not in PLACES or not hasattr(PLACES[place], f"_{name}"):
        raise SystemExit(f"{text!r}: there is no such constant; places are {', '.join(PLACES)}")
    return PLACES[place], f"_{name}", int(value)


def chain_us(work: Workload) -> float:
    """Median µs of a layer, with the constants as they are now."""
    first = work.layers[0]
    batch, context = work.req_to_token.shape
    runner = decode_runner.DecodeRunner.create(
        batch=batch,
        query_heads=first.q.shape[1],
        kv_heads=first.k_pool.shape[1],
        head_dim=first.q.shape[2],
        context=context,
        segments=work.table.unit.shape[1],
        cluster_size=first.arena.cluster_size,
        device="cuda",
        processors=torch.cuda.get_device_properties(0).multi_processor_count,
        fit=None,
    )
    options = DecodeOptions.create(batch, device="cuda", min_clustered=4096)
    runner.plan(work.table, options, work.request_slots, work.seq_lens)
    return graph_us([partial(whole, runner, layer, work, options) for layer in work.layers])


if __name__ == "__main__":
    main()
