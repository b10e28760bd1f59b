"""What a `DecodeRunner` has read, for comparisons with definitions and with FlashInfer."""

import torch
from torch import Tensor

from tactic.kernels.decode.runner import DecodeRunner


def read_rows(
    runner: DecodeRunner, req_to_token: Tensor, request_slots: Tensor, seq_lens: Tensor, sinks: int
) -> list[Tensor]:
    """Pool rows of each (request, KV head), int32: what the kernels listed, then sinks and tail; or all."""
    heads = runner.reads.lengths.shape[1]
    lists = []
    for i, (clustered, lengths) in enumerate(
        zip(runner.step.clustered.tolist(), runner.reads.lengths.tolist(), strict=True)
    ):
        slots = req_to_token[request_slots[i], : seq_lens[i]]
        always = torch.cat([slots[: min(sinks, clustered)], slots[clustered:]])
        for head, length in enumerate(lengths):
            selected = runner.reads.slots[i, head, : length - len(always)].to(slots.device)
            read = slots if length == len(slots) else torch.cat([selected, always])
            lists.append((read * heads + head).to(torch.int32))
    return lists
