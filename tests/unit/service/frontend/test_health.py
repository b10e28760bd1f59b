"""What tools find out without knowing us."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scripted_workers import ScriptedWorker

from tactic.v1 import admin_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_follows_the_workers(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front()
        health = health_pb2_grpc.HealthStub(front.channel)
        for service in ("", "tactic.v1.ChatService"):
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
            while (await watch.read()).status != SERVING:
                pass
            worker.state = admin_pb2.WORKER_STATE_DEAD
            await system.supervisor.publish()
            while (await watch.read()).status != NOT_SERVING:
                pass
            worker.state = admin_pb2.WORKER_STATE_READY
            await system.supervisor.publish()
            watch.cancel()


async def test_reflection_lists_the_services(make_system: Any) -> None:
    async with make_system() as system:
        front = await system.front()
        stub = reflection_pb2_grpc.ServerReflectionStub(front.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {f"tactic.v1.{name}Service" for name in ("Session", "Chat", "Completion", "Admin")} < names
        assert "grpc.health.v1.Health" in names
        assert await call.read() is grpc.aio.EOF
