"""One engine for both sides of a comparison: first through the index, then, for good, with dense attention.

The dense backend is the one that the tactic backend prefills with: FlashInfer on GPUs. It takes over
decoding: its CUDA graphs are captured in place of the others', and Tactic's hooks have nothing to do any
more. Weights, KV cache and prefix cache stay, so that nothing is started, loaded or prefilled twice. SGLang
loads this as a plug-in in the processes that are started inside `switchable`.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from engines import Engine
from plugins import plugged_in

METHOD = "use_dense_attention"


def switchable() -> AbstractContextManager[None]:
    """Engines of the tactic backend that are started inside take `use_dense_attention`."""
    return plugged_in("dense_switch")


def use_dense_attention(engine: Engine) -> None:
    """Decodes without Tactic from now on; no request may be under way.

    Raises:
        AssertionError: the engine was not started inside `switchable`, or the switch failed.
    """
    engine.sglang.collective_rpc(METHOD)


def register() -> None:
    """Entry point, in SGLang's processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.handle_rpc_request", _add_method, HookType.BEFORE
    )


def _add_method(scheduler: Any, *_: Any) -> None:
    """SGLang calls the scheduler's method that a request names."""
    setattr(scheduler, METHOD, partial(_switch, scheduler.tp_worker.model_runner))


def _switch(runner: Any) -> None:
    from tactic.workers.sglang import plugin

    runner.attn_backend = runner.attn_backend.dense
    plugin._runtime = None
    if runner.device == "cuda":
        runner.init_decode_cuda_graph()
