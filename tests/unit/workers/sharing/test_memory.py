"""Memory that other processes map, from the process that made it."""

import gc
import os
from pathlib import Path

import pytest
import torch

from tactic.workers.sharing import memory
from tactic.workers.sharing.handles import FileHandle, NotSharedError, attach, export

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int16, torch.int32]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mapped_tensor_is_the_same_memory(dtype: torch.dtype) -> None:
    made = memory.zeros((3, 5, 4), dtype)
    mapped = attach(export(made), os.getpid())
    assert (mapped.dtype, mapped.shape) == (made.dtype, made.shape)
    assert mapped.data_ptr() != made.data_ptr()
    made[1, 2] = 7
    mapped[2, 4] = 3
    assert torch.equal(mapped.float(), made.float())
    assert made.float().sum() == 4 * 10


def test_a_part_of_a_tensor_is_found_in_its_memory() -> None:
    made = memory.zeros((4, 6), torch.int16)
    made += torch.arange(24, dtype=torch.int16).view(4, 6)
    assert torch.equal(attach(export(made[2]), os.getpid()), made[2])


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4), memory.zeros((4, 6), torch.float32).T, memory.zeros((0,), torch.int32)]
)
def test_what_cannot_be_mapped_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(NotSharedError, match="memory of its process alone"):
        export(tensor)


def test_memory_is_given_back() -> None:
    before = descriptors()
    made = memory.zeros((1024,), torch.float32)
    handle = export(made)
    mapped = attach(handle, os.getpid())
    del made
    gc.collect()
    mapped += 1  # as long as anybody has it mapped
    del mapped
    gc.collect()
    assert descriptors() == before
    with pytest.raises(NotSharedError, match="can't be mapped"):
        attach(handle, os.getpid())


def test_another_file_under_the_same_descriptor_is_not_taken_for_it() -> None:
    made = memory.zeros((4,), torch.float32)
    handle = export(made)
    assert isinstance(handle, FileHandle)
    another = FileHandle(handle.fd, "another", 0, "float32", (4,))
    with pytest.raises(NotSharedError, match="is not another"):
        attach(another, os.getpid())


def test_untouched_memory_takes_none() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    made = memory.zeros((2**28,), torch.float32)
    assert made[-1] == 0
    assert resident() - before < 2**26
