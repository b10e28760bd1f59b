from tactic.workers.refresh.drift import SAMPLED, DriftMonitor
from tactic.workers.refresh.messages import Drift


def asked(monitor: DriftMonitor, slot: int, before: float) -> None:
    monitor.asked(slot)
    assert monitor.wants(slot)
    monitor.measured(slot, before)
    assert not monitor.wants(slot)


def test_a_sample_is_the_share_when_asked_and_in_the_first_step_after() -> None:
    monitor = DriftMonitor()
    asked(monitor, 3, 0.75)
    assert monitor.sums == Drift()
    monitor.ended(3, published=True)
    assert monitor.wants(3)
    assert not monitor.wants(4)
    monitor.measured(3, 0.875)
    assert monitor.sums == Drift(1, 0.75, 0.875)
    assert not monitor.wants(3)


def test_one_refresh_in_so_many_is_measured() -> None:
    monitor = DriftMonitor()
    wanted = []
    for slot in range(2 * SAMPLED):
        monitor.asked(slot)
        wanted.append(monitor.wants(slot))
    assert wanted == [slot % SAMPLED == 0 for slot in range(2 * SAMPLED)]
    monitor.ended(1, published=True)
    assert not monitor.wants(1)


def test_dropped_refreshes_and_requests_that_leave_are_no_samples() -> None:
    monitor = DriftMonitor()
    asked(monitor, 0, 0.5)
    monitor.ended(0, published=False)
    assert not monitor.wants(0)
    for _ in range(SAMPLED - 1):
        monitor.asked(1)
    asked(monitor, 0, 0.5)
    monitor.forget(0)
    monitor.ended(0, published=True)
    assert not monitor.wants(0)
    assert monitor.sums == Drift()


def test_an_answer_before_the_share_is_known_is_no_sample() -> None:
    """The step in which it was asked for was not measured, as where the attention can't."""
    monitor = DriftMonitor()
    monitor.asked(0)
    monitor.ended(0, published=True)
    assert not monitor.wants(0)
