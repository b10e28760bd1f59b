from pathlib import Path
from typing import Any

import pytest
import torch

from tactic.workers.evaluation import model as model_module
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.model import Checkpoint


def hugging_face_logits(checkpoint: Checkpoint, tokens: list[int]) -> torch.Tensor:
    """By transformers' own attention."""
    config = checkpoint.model.config
    own = config._attn_implementation
    checkpoint.model.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            logits: torch.Tensor = checkpoint.model(torch.tensor([tokens])).logits[0]
    finally:
        checkpoint.model.set_attn_implementation(own)
    return logits


def test_dense_decoding_is_the_model_s_own(
    checkpoint: Checkpoint, context: Context, prompt: list[int]
) -> None:
    following = [5, 9, 200, 31]
    logits, reads = context.force(following, Dense())
    expected = hugging_face_logits(checkpoint, [*prompt, *following])[-5:]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert reads.read[0, 0].tolist() == [len(prompt) + i for i in range(5)]
    assert torch.equal(reads.share, torch.ones_like(reads.share))


def test_prefill_in_chunks_is_the_same(
    checkpoint: Checkpoint, prompt: list[int], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "PREFILL_CHUNK", 400)
    chunked = checkpoint.prefill(prompt, room=8)
    for a, b in zip(chunked.layers, context.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_guesses_do_not_change_the_answer(context: Context, threshold: float) -> None:
    method = Tactic(threshold, "centroid")
    plain = context.decode(method, limit=12, stop=[], measure=0.9)
    wrong_end = [*plain.tokens[:5], 1, *plain.tokens[6:]]
    for guess in (plain.tokens, plain.tokens[:7], wrong_end, [1, 2, 3], plain.tokens * 3):
        guessed = context.decode(method, limit=12, stop=[], guess=guess, measure=0.9)
        assert guessed.tokens == plain.tokens
        assert torch.equal(guessed.reads.read, plain.reads.read)
        assert torch.equal(guessed.reads.oracle, plain.reads.oracle)
    assert context.decode(method, limit=12, stop=[], guess=plain.tokens).passes == 1


def test_an_answer_ends_before_its_stop_token(context: Context) -> None:
    tokens = context.decode(Dense(), limit=12, stop=[]).tokens
    stop = tokens[6]
    answer = context.decode(Dense(), limit=12, stop=[stop], guess=tokens)
    assert answer.tokens == tokens[: tokens.index(stop)]
    # The step that chose to stop has been made, too.
    assert answer.reads.read.shape[-1] == tokens.index(stop) + 1


def test_a_context_goes_on_from_what_was_decoded(
    checkpoint: Checkpoint, context: Context, prompt: list[int]
) -> None:
    context.force([7, 8, 9], Dense())
    grown = context.continued([7, 8, 9], reindex=True)
    logits, _ = grown.force([10], Dense())
    expected = hugging_face_logits(checkpoint, [*prompt, 7, 8, 9, 10])[-2:]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert grown.layers[0].keys.shape[0] == len(prompt) + 2
    kept = context.continued([7, 8, 9], reindex=False)
    assert kept.layers[0].keys.shape[0] == len(prompt) - 1
    assert kept.length == grown.length


def test_too_much_is_refused(checkpoint: Checkpoint, context: Context, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="prefill with more room"):
        context.force([1] * 70, Dense())
    with pytest.raises(EvaluationError, match=r"131,072 positions of .*max_position_embeddings"):
        checkpoint.prefill(prompt, room=131_000)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {"head_dim": 32}),
        ("mistral", {"sliding_window": None}),
        (
            "qwen3_moe",
            {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2},
        ),
    ],
)
def test_other_architectures(
    kind: str, settings: dict[str, Any], checkpoint: Checkpoint, prompt: list[int], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **heads, **settings))
    for name, weight in model.named_parameters():
        if "q_proj" in name:  # else attention is even, and everything is read
            weight.data *= 20
    model.save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    other = Checkpoint.load(tmp_path, device="cpu")
    context = other.prefill(prompt, room=8)
    dense, _ = context.force([5, 6, 7], Dense())
    expected = hugging_face_logits(other, [*prompt, 5, 6, 7])[-4:]
    torch.testing.assert_close(dense, expected, rtol=1e-3, atol=1e-4)
    _, reads = context.force([5, 6, 7], Tactic(0.5, "centroid"))
    assert (reads.read < reads.visible).all()
