"""How a process tells another one where a tensor lies, and how that one maps it."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from tactic.workers.sharing.memory import MemoryFile, file_of, map_file

DEVICE_ARGUMENT = 6
"""Position of the device's index among the arguments of torch's `rebuild_cuda_tensor`."""


class NotSharedError(Exception):
    """A tensor can't be exported, or can't be mapped here; the message says why."""


class FileHandle(msgspec.Struct, tag=True, frozen=True):
    """A contiguous CPU tensor, `offset` bytes into a MemoryFile."""

    fd: int
    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


class CudaHandle(msgspec.Struct, tag=True, frozen=True):
    """A tensor in GPU memory.

    Attributes:
        device: UUID of the GPU, as its index differs between processes.
        rebuild: torch's arguments for it, with the CUDA IPC handle, pickled.
    """

    device: str
    rebuild: bytes


Handle = FileHandle | CudaHandle


def export(tensor: torch.Tensor) -> Handle:
    """A handle by which other processes of the host can map a tensor, as long as this process lives.

    Raises:
        NotSharedError: its memory is not of a kind that can be mapped.
    """
    if tensor.device.type == "cuda":
        return _export_cuda(tensor)
    file = file_of(tensor)
    if file is None or not tensor.is_contiguous():
        raise NotSharedError(f"a tensor of shape {tuple(tensor.shape)} lies in memory of its process alone")
    offset = tensor.data_ptr() - tensor.untyped_storage().data_ptr()
    return FileHandle(
        file.fd, file.name, offset, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    )


def attach(handle: Handle, pid: int, device: torch.device | None = None) -> torch.Tensor:
    """Maps a tensor that process `pid` of this host exported: the same memory, not a copy.

    Args:
        handle: of the tensor.
        pid: of the exporting process.
        device: GPU from which GPU memory is to be reached, by peer access where it lies on another one; the
            one on which it lies by default.

    Raises:
        NotSharedError: the process is gone, its memory may not be opened, or its GPU is out of reach.
    """
    if isinstance(handle, CudaHandle):
        return _attach_cuda(handle, device)
    try:
        whole = map_file(MemoryFile(handle.fd, handle.name), pid)
    except OSError as error:
        raise NotSharedError(f"memory of process {pid} can't be mapped: {error}") from error
    dtype: torch.dtype = getattr(torch, handle.dtype)
    size = torch.Size(handle.shape).numel() * dtype.itemsize
    return whole[handle.offset : handle.offset + size].view(dtype).view(handle.shape)


def _export_cuda(tensor: torch.Tensor) -> CudaHandle:
    try:
        _, arguments = reduce_tensor(tensor)  # type: ignore[no-untyped-call]  # torch
    except RuntimeError as error:
        # As with memory that was not allocated by cudaMalloc.
        raise NotSharedError(f"GPU memory can't be exported: {error}") from error
    return CudaHandle(device_uuid(tensor.device), pickle.dumps(arguments))


def _attach_cuda(handle: CudaHandle, device: torch.device | None) -> torch.Tensor:
    if device is None:
        visible = {device_uuid(torch.device("cuda", i)): i for i in range(torch.cuda.device_count())}
        if handle.device not in visible:
            raise NotSharedError(f"GPU {handle.device} is not visible to this process")
        index: int | None = visible[handle.device]
    else:
        # CUDA maps it for the GPU that is current when it is opened.
        index = device.index
    arguments: list[Any] = list(pickle.loads(handle.rebuild))
    arguments[DEVICE_ARGUMENT] = index
    try:
        tensor: torch.Tensor = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]  # torch
    except RuntimeError as error:
        raise NotSharedError(f"GPU memory can't be mapped: {error}") from error
    return tensor


def device_uuid(device: torch.device) -> str:
    """The GPU's own name, the same in all processes."""
    return str(torch.cuda.get_device_properties(device).uuid)
