"""SGLang engines without a deployment around them, for what is measured or proved on one."""

import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import zmq

from tactic.workers.config import BackendConfig, IndexConfig, RefreshConfig
from tactic.workers.refresh.messages import (
    RefreshReply,
    RequestReport,
    ToWorker,
    decode_to_worker,
    encode,
)

T = TypeVar("T")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    # Of Qwen2.5-7B-1M, without its biases: 57 GB of bf16 KV at a million tokens.
    "qwen2.5-7b": LLAMA
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_theta": 10000000.0,
        "max_position_embeddings": 1048576,
    },
    "small": LLAMA
    | {
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
    },
}
"""Configurations that a checkpoint is made of, without weights."""

REPORT_TIMEOUT_S = 10.0


def prepare_environment() -> None:
    """Settings that SGLang reads when it is imported."""
    os.environ.setdefault("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", "1")
    os.environ.setdefault("SGLANG_FORCE_COARSE_WAR_BARRIER", "1")
    os.environ.setdefault("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1")
    # The reference model's groups of 3: the tensor-core kernel, which is the one that is prebuilt.
    os.environ.setdefault("SGLANG_FLASHINFER_USE_TENSOR_CORE", "true")
    if not torch.cuda.is_available():
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


class Engine:
    """One SGLang engine: `with Engine("small", "tactic") as engine`. Call `prepare_environment` before.

    Args:
        model: checkpoint directory, or one of `SHAPES`, which gets random weights.
        backend: "tactic", or a dense one of SGLang's.
        index: of the tactic backend.
        refresh: of the tactic backend; off by default.
        link: address of a SchedulerHub that hears what the backend says, in place of `messages`.
        arguments: more of `sglang.Engine`.
    """

    def __init__(
        self,
        model: str,
        backend: str,
        *,
        index: IndexConfig | None = None,
        refresh: RefreshConfig | None = None,
        link: str = "",
        **arguments: Any,
    ) -> None:
        import sglang  # takes seconds

        self._folder = tempfile.TemporaryDirectory(prefix="tactic-engine-")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        own = f"ipc://{self._folder.name}/link"
        self._socket.bind(own)
        BackendConfig(
            index=index or IndexConfig(), refresh=refresh or RefreshConfig(enabled=False), link=link or own
        ).to_environment()
        if model in SHAPES:
            Path(self._folder.name, "config.json").write_text(json.dumps(SHAPES[model]))
            arguments = {"load_format": "dummy", "model_path": self._folder.name} | arguments
        else:
            arguments = {"model_path": model} | arguments
        if torch.cuda.is_available():
            device: dict[str, Any] = {"cuda_graph_backend_prefill": "disabled"}
        else:
            device = {"device": "cpu", "dtype": "float32", "sleep_on_idle": True}
        self.sglang = sglang.Engine(
            **(
                {
                    "attention_backend": backend,
                    "sampling_backend": "pytorch",
                    "grammar_backend": "none",
                    "skip_tokenizer_init": True,
                    "skip_server_warmup": True,
                    "incremental_streaming_output": True,
                    "log_level": "warning",
                }
                | device
                | arguments
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sglang.shutdown()
        self._socket.close()
        self._context.term()
        self._folder.cleanup()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the engine's event loop."""
        result: T = self.sglang.loop.run_until_complete(work)
        return result

    async def stream(
        self, prompt: Sequence[int], tokens: int, tactic: dict[str, Any], **arguments: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """SGLang's outputs of one request, as they come.

        It may end early, at the end-of-text token: for others, SGLang keeps room for all that they may become
        and retracts none.
        """
        parameters = greedy(tokens, tactic) | {"ignore_eos": False}
        outputs = await self.sglang.async_generate(
            input_ids=list(prompt), sampling_params=parameters, stream=True, **arguments
        )
        async for output in outputs:
            yield output

    def generate(
        self, prompts: list[list[int]], tokens: int, tactic: dict[str, Any], **arguments: Any
    ) -> list[dict[str, Any]]:
        """SGLang's final outputs of a batch."""
        outputs: list[dict[str, Any]] = self.sglang.generate(
            input_ids=prompts, sampling_params=greedy(tokens, tactic), **arguments
        )
        return outputs

    def load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Writes weights, named as in a checkpoint, over the engine's; RuntimeError if it refuses them."""
        success, message = self.sglang.update_weights_from_tensor(weights)
        if not success:
            raise RuntimeError(f"the engine takes no weights {[name for name, _ in weights]}: {message}")
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()

    def messages(self, wait_s: float = 0.0) -> list[ToWorker]:
        """What the tactic backend has said since the last call; waits so long for the first message."""
        found = []
        while self._socket.poll(0 if found else 1000 * wait_s):
            found.append(decode_to_worker(self._socket.recv_multipart()[1]))
        return found

    def reply(self, reply: RefreshReply) -> None:
        """Answers a job among `messages`, of an engine with one rank."""
        self._socket.send_multipart([b"rank-0", encode(reply)])

    def report(self, request: str) -> RequestReport:
        """What the backend says of a request, once it is over; drops all other messages.

        Raises:
            RuntimeError: nothing came.
        """
        while messages := self.messages(REPORT_TIMEOUT_S):
            for message in messages:
                if isinstance(message, RequestReport) and message.request_id == request:
                    return message
        raise RuntimeError(
            "the engine did not report what it read: is the `tactic` distribution installed where it runs?"
        )


def greedy(tokens: int, tactic: dict[str, Any]) -> dict[str, Any]:
    """SGLang's sampling parameters: always as many tokens as asked for."""
    return {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "sampling_seed": 1,
        "custom_params": {"tactic": tactic},
    }


def random_prompt(length: int, seed: int, vocabulary: int = 4096) -> list[int]:
    """Token ids without meaning."""
    draw = random.Random(f"{seed}-{length}")
    return [draw.randrange(3, vocabulary) for _ in range(length)]


def device_name() -> str:
    """For the result's head."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
