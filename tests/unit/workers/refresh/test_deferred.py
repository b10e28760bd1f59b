"""What waits for the device, on a device that is never late."""

import torch

from tactic.workers.refresh.deferred import Deferred


def test_on_the_cpu_it_goes_on_at_once_with_copies() -> None:
    deferred, values, seen = Deferred(torch.device("cpu")), torch.tensor([1, 2]), []
    with deferred.aside():
        deferred.when_here([values], seen.extend)
    values.zero_()
    assert [each.tolist() for each in seen] == [[1, 2]]
    deferred.advance()
    assert len(seen) == 1


def test_what_goes_on_may_defer_again() -> None:
    deferred, order = Deferred(torch.device("cpu")), []

    def first(_: list[torch.Tensor]) -> None:
        deferred.when_here([], lambda _: order.append("second"))
        order.append("first")

    deferred.when_here([], first)
    assert order == ["second", "first"]
