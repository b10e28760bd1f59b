"""SGLang with the tactic backend, without a deployment around it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import zmq

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec, EngineSpec, IndexSpec, RefreshSpec
from tactic.workers.decode.engine import backend_config, engine_arguments, prepare_environment
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.model import pick_device
from tactic.workers.evaluation.tasks.prompt import Sample
from tactic.workers.refresh.messages import RequestReport, decode_to_worker

REPORT_TIMEOUT_S = 10.0


class LocalEngine:
    """SGLang with the tactic backend, in this process and its children, as a decode worker runs it.

    Args:
        spec: engine and index.
        socket: ZeroMQ's, bound where the schedulers report to.
        link: its address.
    """

    def __init__(self, spec: DeploymentSpec, socket: Any, link: str) -> None:
        prepare_environment(spec.engine, backend_config(spec, link))
        # Greedy, one request after the other.
        arguments = engine_arguments(spec.engine) | {"log_level": "warning"}
        import sglang  # Only here: it takes seconds, and prepare_environment must come first.

        self._socket = socket
        self._engine = sglang.Engine(**arguments)

    def answer(self, sample: Sample, stop: Sequence[int], options: dict[str, Any]) -> tuple[list[int], float]:
        """Decodes greedily; returns the ids without the one that stops, and the share of positions read.

        Raises:
            EvaluationError: the engine did not report what it read.
        """
        request = os.urandom(16).hex()
        output = self._engine.generate(
            input_ids=sample.prompt,
            sampling_params={
                "temperature": 0,
                "max_new_tokens": sample.limit,
                "stop_token_ids": list(stop),
                "sampling_seed": 0,
                "custom_params": {"tactic": options},
            },
            rid=request,
        )
        tokens = [token for token in output["output_ids"] if token not in stop]
        report = self._report(request)
        return tokens, sum(report.read_share_per_layer) / len(report.read_share_per_layer)

    def close(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()

    def _report(self, request: str) -> RequestReport:
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        while self._socket.poll(max(0, 1000 * (deadline - time.monotonic()))):
            message = decode_to_worker(self._socket.recv_multipart()[1])
            if isinstance(message, RequestReport) and message.request_id == request:
                return message
        raise EvaluationError(
            "the engine did not report what it read: is the `tactic` distribution installed where it runs?"
        )


@contextmanager
def local_engine(arguments: Namespace) -> Iterator[LocalEngine]:
    """An engine of the arguments; it ends with the block."""
    spec = DeploymentSpec(
        engine=EngineSpec(
            model_path=str(arguments.model),
            device=pick_device(arguments.device),
            dtype=arguments.dtype,
            context_length=max(arguments.contexts),
            max_running_requests=1,
        ),
        # Short contexts, too, are read through the index: that is what is asked.
        index=IndexSpec(sinks=arguments.sinks, cluster_size=arguments.cluster_size, min_clustered=1),
        refresh=RefreshSpec(enabled=False),
    )
    with tempfile.TemporaryDirectory(prefix="tactic-eval-") as folder, zmq.Context() as context:
        link = f"ipc://{folder}/link"
        with context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(link)
            print("  starting the engine", file=sys.stderr, flush=True)
            engine = LocalEngine(spec, socket, link)
            try:
                yield engine
            finally:
                engine.close()
