"""Native-CPU platform: SGLang's real scheduler, radix cache and sampler in plain torch, without a GPU.

SGLang finds it through the entry point group `sglang.srt.platforms`.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from tactic.workers.sglang.device import engine_device


def activate() -> str | None:
    """Entry point: names the platform class when the engine is to run on the CPU, else None."""
    return f"{__name__}.NativeCpuPlatform" if engine_device() == "cpu" else None


class NativeCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # SGLang is untyped
    """An out-of-tree platform whose operations are SGLang's `forward_native` twins."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def get_default_attention_backend(self) -> str:
        """Used when no attention backend is named."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Selects `forward_native` in every multi-platform layer."""
        return "native"

    def get_mha_kv_pool_cls(self) -> type:
        """SGLang's own MHA pool, which is plain torch, with keys that clustering actors can map."""
        from tactic.workers.sglang.shared_pool import SharedKeyPool

        return SharedKeyPool

    def get_paged_allocator_cls(self) -> type:
        """SGLang's own allocator; page size 1 never reaches it."""
        from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

        allocator: type = PagedTokenToKVPoolAllocator
        return allocator

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Settings without which SGLang would look for a GPU."""
        server_args.sampling_backend = "pytorch"
        server_args.disable_overlap_schedule = True
