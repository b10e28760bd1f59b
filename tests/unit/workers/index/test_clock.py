import torch

from tactic.workers.index.clock import WriteClock


def test_stamps_are_those_of_the_last_write() -> None:
    clock = WriteClock(8, torch.device("cpu"))
    for written in ([1, 2, 3], [3], [5, 1]):
        clock.tick(torch.tensor(written))
    assert clock.now == 3
    assert clock.stamps(torch.arange(8)).tolist() == [0, 3, 1, 2, 0, 3, 0, 0]


def test_the_latest_of_some() -> None:
    clock = WriteClock(8, torch.device("cpu"))
    for written in ([1, 2], [3]):
        clock.tick(torch.tensor(written))
    assert int(clock.latest(torch.tensor([0, 2], dtype=torch.int32))) == 1
    assert int(clock.latest(torch.arange(8))) == 2
