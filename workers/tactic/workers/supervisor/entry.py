"""What the supervisor knows of one worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tactic.v1.admin_pb2 import (
    WORKER_STATE_DRAINING,
    WORKER_STATE_READY,
    WORKER_STATE_STARTING,
    Worker,
    WorkerKind,
)


@dataclass
class WorkerEntry:
    """A worker's public record and the Ray handle behind it.

    Attributes:
        number: among the workers of its kind.
        record: what clients see.
        handle: the actor; None while there is none.
        failures: starts in a row that failed.
    """

    number: int
    record: Worker
    handle: Any = None
    failures: int = 0
    draining: bool = field(default=False)

    @classmethod
    def create(cls, name: str, number: int, kind: WorkerKind.ValueType) -> WorkerEntry:
        """An entry for a worker that is yet to be started."""
        return cls(number, Worker(worker_id=f"{name}-{number}", kind=kind, state=WORKER_STATE_STARTING))

    def ready(self) -> None:
        """The worker answers."""
        self.failures = 0
        self.record.state = WORKER_STATE_DRAINING if self.draining else WORKER_STATE_READY
