"""CPU tensors in memory that other processes of the host can map."""

from __future__ import annotations

import mmap
import os
import uuid
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file that lives in memory only, and only while a process has it open or mapped.

    It takes nothing from /dev/shm, which containers keep small, and leaves nothing behind when processes
    are killed.

    Attributes:
        fd: file descriptor in the process that made it.
        name: unique, and the proof that a file found under `fd` is this one.
    """

    fd: int
    name: str

    @classmethod
    def create(cls, size: int) -> MemoryFile:
        """A file of `size` zero bytes, which take memory once they are written."""
        name = f"tactic-{uuid.uuid4()}"
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        return cls(fd, name)

    def open_in(self, pid: int) -> int:
        """A descriptor of the file that process `pid` made. Raises OSError if it is not there."""
        path = Path(f"/proc/{pid}/fd/{self.fd}")
        if not str(path.readlink()).startswith(f"/memfd:{self.name} "):
            raise FileNotFoundError(f"{path} is not {self.name}")
        return os.open(path, os.O_RDWR)


_files: dict[int, MemoryFile] = {}
"""Of this process, by the address of its tensor's storage."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros that other processes can map; else as torch.zeros on the CPU."""
    elements = torch.Size(shape).numel()
    if not elements:
        return torch.zeros(shape, dtype=dtype)
    size = elements * dtype.itemsize
    file = MemoryFile.create(size)
    memory = mmap.mmap(file.fd, size)
    tensor = _whole(memory).view(dtype).view(shape)
    address = tensor.untyped_storage().data_ptr()
    _files[address] = file
    weakref.finalize(memory, _forget, address, file.fd)
    return tensor


def file_of(tensor: torch.Tensor) -> MemoryFile | None:
    """The file that holds the storage of a tensor; None if it lies in memory of this process alone."""
    return _files.get(tensor.untyped_storage().data_ptr())


def map_file(file: MemoryFile, pid: int) -> torch.Tensor:
    """The bytes of a file that process `pid` made, uint8 [size]. Raises OSError if it is not there."""
    fd = file.open_in(pid)
    try:
        return _whole(mmap.mmap(fd, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def _whole(memory: mmap.mmap) -> torch.Tensor:
    """All of `memory`, which stays mapped as long as the tensor's storage."""
    return torch.frombuffer(memory, dtype=torch.uint8)


def _forget(address: int, fd: int) -> None:
    del _files[address]
    os.close(fd)
