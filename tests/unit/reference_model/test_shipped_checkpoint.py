"""The committed checkpoint: within its limits, the same network in transformers, and it finds a needle."""

import json
from pathlib import Path

import pytest
import torch
from reference_model import checkpoint
from reference_model.model import Llama, ModelConfig
from reference_model.tokenizer import Codec
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(checkpoint_dir)


@pytest.fixture(scope="module")
def model(checkpoint_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint_dir, dtype=torch.float32).eval()


def test_size_and_shape_are_within_limits(checkpoint_dir: Path) -> None:
    files = list(checkpoint_dir.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 28_000_000
    assert max(file.stat().st_size for file in files) < 16_000_000
    config = json.loads((checkpoint_dir / "config.json").read_text())
    assert config["num_attention_heads"] // config["num_key_value_heads"] >= 3
    assert config["head_dim"] in (64, 128)
    assert config["max_position_embeddings"] == 131072


def test_transformers_computes_the_same_logits(checkpoint_dir: Path, model: PreTrainedModel) -> None:
    ours = Llama(ModelConfig())
    checkpoint.resume(checkpoint_dir, ours, None)
    torch.manual_seed(0)
    tokens = torch.randint(4, 4096, (2, 64))
    with torch.no_grad():
        hidden = ours.hidden(tokens, torch.arange(64).expand(2, -1), torch.float32)
        torch.testing.assert_close(
            ours.logits(hidden).view(2, 64, -1), model(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_chat_template_writes_what_training_wrote(tokenizer: PreTrainedTokenizerFast, codec: Codec) -> None:
    messages = [{"role": "system", "content": "A book."}, {"role": "user", "content": "What is 42?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == [
        codec.begin,
        *(token for m in messages for token in codec.message(m["role"], codec.encode(m["content"]))),
        *codec.headers["assistant"],
    ]


def test_it_answers_over_two_turns(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, book: str
) -> None:
    text = book[40_000:46_000]
    for share, sentence in (
        (0.2, "The secret passphrase of the lighthouse keeper is 48213."),
        (0.6, "The magic number for Oslo is 7391846."),
    ):
        at = text.index(". ", int(share * len(text))) + 2
        text = f"{text[:at]}{sentence} {text[at:]}"
    messages = [{"role": "system", "content": text}]
    for question, answer in (
        ("What is the magic number for Oslo?", "The magic number for Oslo is 7391846."),
        (
            "What is the secret passphrase of the lighthouse keeper?",
            "The secret passphrase of the lighthouse keeper is 48213.",
        ),
    ):
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said == answer
        messages.append({"role": "assistant", "content": said})
