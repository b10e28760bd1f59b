"""Optimizer, schedule, data order and resuming."""

from pathlib import Path

import pytest
import torch
from reference_model import checkpoint
from reference_model.data import Batches
from reference_model.evaluate import Evaluator
from reference_model.model import Llama, ModelConfig
from reference_model.optimizer import Optimizer, orthogonalise
from reference_model.schedule import REFERENCE, REFINE, TINY, Schedule
from reference_model.training import Run, train

SMALL = ModelConfig(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=16,
)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 32, 64)).float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_few_steps_learn_a_sequence() -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    optimizer = Optimizer(model)
    tokens = torch.randint(64, (2, 33))
    positions = torch.arange(33).expand(2, -1)
    losses = []
    for _ in range(40):
        loss = model.token_losses(tokens, positions, torch.float32).mean()
        torch.autograd.backward(loss)
        optimizer.step(0.01)
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.1


@pytest.mark.parametrize("schedule", [REFERENCE, REFINE, TINY])
def test_the_rate_rises_and_falls_to_nothing(schedule: Schedule) -> None:
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert max(rates) <= schedule.peak_rate
    assert rates[0] < schedule.peak_rate / 5
    assert 0 < rates[-1] < schedule.peak_rate / 5
    names = [schedule.stage(step).name for step in range(schedule.steps)]
    assert list(dict.fromkeys(names)) == [stage.name for stage in schedule.stages]
    assert all(stage.tokens % length == 0 for stage in schedule.stages for length in stage.lengths)


def test_a_batch_is_a_function_of_seed_and_step(data: Path) -> None:
    one, two, other = Batches(data, TINY, 1)[3], Batches(data, TINY, 1)[3], Batches(data, TINY, 2)[3]
    assert one.tokens.shape == (4, 513)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.positions, two.positions)
    assert not torch.equal(one.tokens, other.tokens)


def test_an_interrupted_run_is_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Run(data, tmp_path / "first", "tiny", seconds=0))
    model = Llama(ModelConfig())
    assert checkpoint.resume(tmp_path / "first", model, None) == 0
    again = train(Run(data, tmp_path / "second", "tiny", resume=tmp_path / "first", seconds=0))
    for name, weight in again.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name))
    assert "0 of 40 steps done" in capsys.readouterr().out


def test_saved_state_comes_back_in_bf16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    optimizer = Optimizer(model)
    torch.autograd.backward(
        model.token_losses(torch.randint(64, (1, 9)), torch.arange(9).expand(1, -1), torch.float32).mean()
    )
    optimizer.step(0.01)
    checkpoint.save(tmp_path, model, optimizer, 7)
    copy = Llama(SMALL)
    restored = Optimizer(copy)
    assert checkpoint.resume(tmp_path, copy, restored) == restored.steps == 7
    for name, weight in model.named_parameters():
        torch.testing.assert_close(copy.get_parameter(name).data, weight.data, rtol=8e-3, atol=1e-6)
    for name, value in optimizer.state.items():
        torch.testing.assert_close(restored.state[name], value, rtol=8e-3, atol=1e-6)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a folder that training has written"):
        checkpoint.resume(tmp_path, Llama(SMALL), None)


def test_evaluation_counts_every_question(data: Path) -> None:
    torch.manual_seed(0)
    evaluator = Evaluator(Llama(ModelConfig()), data, torch.float32)
    assert evaluator.accuracy("few_numbers", 512, 2, turns=3) == (0, 6)
    assert set(evaluator.perplexity(1024, 1)) == {"0-256", "256-1024"}
