"""Which decode worker serves what: the table of workers, their load, dispatch and re-routing."""

from tactic.service.routing.dispatch import Dispatcher, Job, Placed, WorkerRefusedError, WorkersLostError
from tactic.service.routing.load import LoadBook
from tactic.service.routing.router import NoWorkerError, Router
from tactic.service.routing.supervisor import Supervisor
from tactic.service.routing.table import WorkerTable

__all__ = [
    "Dispatcher",
    "Job",
    "LoadBook",
    "NoWorkerError",
    "Placed",
    "Router",
    "Supervisor",
    "WorkerRefusedError",
    "WorkerTable",
    "WorkersLostError",
]
