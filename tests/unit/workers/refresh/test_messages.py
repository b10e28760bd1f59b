import pytest
import torch

from tactic.workers.refresh import messages
from tactic.workers.refresh.messages import Drift, Gauges, Hello, Piece, RefreshJob, RefreshReply, TensorSpec
from tactic.workers.refresh.pools import SharedPools
from tactic.workers.sharing.handles import CudaHandle, FileHandle

PIECES = (Piece(0, 64, 2), Piece(64, 40, 3, warm_unit=1))
POOLS = SharedPools(
    "name",
    "host",
    8,
    16,
    keys=(FileHandle(3, "file", 0, "float32", (9, 2, 8)),),
    index=(CudaHandle("GPU-1", b"handle"),) * 5,
)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int16, torch.int32, torch.float8_e4m3fn]
)
def test_tensors_arrive_as_they_left(dtype: torch.dtype) -> None:
    sent = [
        torch.arange(24).reshape(2, 3, 4).to(dtype).transpose(0, 2),
        torch.arange(5).to(dtype)[1:4],
        torch.tensor(3).to(dtype),
    ]
    specs, frames = messages.pack(sent)
    received = messages.unpack(specs, [bytes(frame) for frame in frames])
    for a, b in zip(sent, received, strict=True):
        assert (b.dtype, b.shape) == (a.dtype, a.shape)
        assert torch.equal(a.float(), b.float())


def test_what_arrives_is_writable_and_its_own() -> None:
    specs, frames = messages.pack([torch.zeros(4)])
    frame = bytes(frames[0])
    first, second = messages.unpack(specs * 2, [frame, frame])
    first += 1
    assert second.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("spec", "frame", "match"),
    [
        (TensorSpec("float32", (3,)), bytes(8), "8 bytes"),
        (TensorSpec("float32", (2,)), bytes(9), "9 bytes"),
        (TensorSpec("float33", (2,)), bytes(8), "unknown dtype"),
        (TensorSpec("nn", (2,)), bytes(8), "unknown dtype"),
        (TensorSpec("float32", (-1, -2)), bytes(8), "does not hold"),
        (TensorSpec("float32", (0,)), b"", "does not hold"),
    ],
)
def test_frames_that_do_not_fit_are_refused(spec: TensorSpec, frame: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        messages.unpack([spec], [frame])


def test_as_many_frames_as_tensors() -> None:
    with pytest.raises(ValueError, match="0 frames for 1 tensors"):
        messages.unpack([TensorSpec("float32", (1,))], [])


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, 1000, 30),
        RefreshJob(7, 0, "request", PIECES, 16, 7, 120, b"slots", tensors=(TensorSpec("bfloat16", (2,)),)),
        RefreshJob(7, 0, "request", PIECES, 16, 7, 120, b"slots", POOLS),
        Gauges(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, {"slots_moved": 2}, Drift(1, 0.5, 0.75)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_to_the_worker(message: messages.ToWorker) -> None:
    assert messages.decode_to_worker(messages.encode(message)) == message


def test_messages_to_the_scheduler() -> None:
    reply = RefreshReply(7, error="busy", held=True, tensors=(TensorSpec("int16", (2, 3)),))
    assert messages.decode_to_scheduler(messages.encode(reply)) == reply
