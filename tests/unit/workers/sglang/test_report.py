"""What is reported of a request."""

import pytest
import torch

from tactic.workers.sglang.report import RequestMonitor


def test_shares_are_means_over_steps() -> None:
    monitor = RequestMonitor("a" * 32)
    for length, version in ((100, 1), (101, 1), (102, 2), (103, 2)):
        monitor.step(length, version, dense=length == 100)
    report = monitor.report(0, torch.tensor([2.0, 4.0]))
    assert report.read_share_per_layer == [0.5, 1.0]
    assert (report.decode_steps, report.dense_steps, report.context_length) == (4, 1, 103)
    assert report.index_versions == [1, 2]
    assert report.attention_share_mean is None


def test_a_request_that_never_decoded_has_read_nothing() -> None:
    assert RequestMonitor("a" * 32).report(0, torch.zeros(2)).read_share_per_layer == [0.0, 0.0]


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_one_step_in_so_many_is_measured(every: int, expected: list[int]) -> None:
    monitor = RequestMonitor("a" * 32, measured_every=every)
    measured = []
    for step in range(1, 5):
        monitor.step(100 + step, 1, dense=False)
        if monitor.measured:
            measured.append(step)
    assert measured == expected


@pytest.mark.parametrize("steps", [1, 40])
def test_share_quantile_of_any_number_of_values(steps: int) -> None:
    monitor = RequestMonitor("a" * 32)
    # 40 of these are more values than torch.quantile takes.
    monitor.shares = [torch.linspace(0, 1, 2**19)] * steps
    report = monitor.report(0, torch.zeros(1))
    assert report.attention_share_mean == pytest.approx(0.5, abs=1e-3)
    assert report.attention_share_p10 == pytest.approx(0.1, abs=1e-3)
