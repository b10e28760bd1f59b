from types import SimpleNamespace

import pytest
import ray

from tactic.workers.refresh.worker import assigned_gpu


@pytest.mark.parametrize(
    ("visible", "assigned", "index"), [(None, "2", 2), ("4,7", "7", 1), ("GPU-a,GPU-b", "GPU-a", 0)]
)
def test_the_assigned_gpu_is_found_among_the_visible(
    visible: str | None, assigned: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": [assigned]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert assigned_gpu() == index
