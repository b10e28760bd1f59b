"""Starts, inspects and stops a deployment on this machine: embedded Redis, supervisor, front ends."""

from tactic.service.launch.deployment import Deployment, start, stop
from tactic.service.launch.errors import LaunchError
from tactic.service.launch.health import is_serving
from tactic.service.launch.redis_server import RedisServer
from tactic.service.launch.state import DeploymentState, ProcessState, read_state

__all__ = [
    "Deployment",
    "DeploymentState",
    "LaunchError",
    "ProcessState",
    "RedisServer",
    "is_serving",
    "read_state",
    "start",
    "stop",
]
