"""The scheduler's end of the line to its decode worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import zmq

from tactic.workers.refresh import messages
from tactic.workers.refresh.messages import RefreshReply, ToWorker


class SchedulerLink:
    """Sends without waiting and receives what has come: the scheduler never blocks on it.

    Args:
        address: ZeroMQ address at which the decode worker listens.
        rank: tensor-parallel rank, the peer's name for this end.
    """

    def __init__(self, address: str, rank: int) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"rank-{rank}".encode())
        # What cannot be delivered any more must not hold up the process's end.
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address)

    def send(self, message: ToWorker, frames: Sequence[memoryview] = ()) -> None:
        """Queues a message; `frames` must stay unchanged until they are sent."""
        self._socket.send_multipart([messages.encode(message), *frames], copy=not frames)

    def receive(self) -> Iterator[tuple[RefreshReply, list[bytes]]]:
        """Replies that have arrived, each with the frames of its tensors."""
        while self._socket.poll(0):
            header, *frames = self._socket.recv_multipart()
            yield messages.decode_to_scheduler(header), frames

    def close(self) -> None:
        """Closes the line."""
        self._socket.close()
