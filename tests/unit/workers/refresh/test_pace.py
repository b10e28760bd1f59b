import time

import pytest
import torch

from tactic.workers.config import SHARED_DUTY, RefreshConfig
from tactic.workers.refresh.pace import Pace


@pytest.mark.parametrize(
    ("duty", "gpu", "rests"), [(1.0, False, []), (0.25, False, [6.0, 15.0]), (0.25, True, [0.5, 0.5])]
)
def test_it_rests_for_its_part_of_the_time(
    duty: float, gpu: bool, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(Pace, "wait", lambda _: None)
    with Pace(duty) as pace:
        pace.uses(torch.device("cuda" if gpu else "cpu"))
        for work in (2, 5):
            now[0] += work
            pace.rest()
    assert slept == rests


@pytest.mark.parametrize(
    ("config", "duty"),
    [
        (RefreshConfig(), 1),
        (RefreshConfig(duty=0.5), 0.5),
        (RefreshConfig(placement="dedicated"), 1),
        (RefreshConfig(placement="colocated"), 1),
        (RefreshConfig(placement="colocated", mps_percentage=0), SHARED_DUTY),
        (RefreshConfig(placement="colocated", mps_percentage=0, duty=0.3), 0.3),
    ],
)
def test_only_turns_on_a_gpu_are_short(config: RefreshConfig, duty: float) -> None:
    assert config.actual_duty == duty
