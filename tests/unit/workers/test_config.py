import pytest
from pydantic import ValidationError

from tactic.workers.config import VARIABLE, BackendConfig, IndexConfig, RefreshConfig


def test_a_configuration_survives_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert BackendConfig.from_environment() == BackendConfig()
    config = BackendConfig(
        index=IndexConfig(segment_size=1024, cluster_size=16, threshold=0.8, check_integrity=True),
        refresh=RefreshConfig(interval=512, scope="full", placement="colocated"),
        link="ipc:///tmp/hub",
    )
    config.to_environment()
    assert BackendConfig.from_environment() == config


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (IndexConfig, "cluster_size", 48),
        (IndexConfig, "segment_size", 1000),
        (IndexConfig, "segment_size", 16384),
        (IndexConfig, "threshold", 0.0),
        (IndexConfig, "threshold", 1.1),
        (IndexConfig, "estimator", "guess"),
        (IndexConfig, "memory_share", 2),
        (IndexConfig, "sinks", -1),
        (IndexConfig, "min_clustered", 0),
        (IndexConfig, "unknown", 1),
        (RefreshConfig, "interval", 0),
        (RefreshConfig, "scope", "half"),
        (RefreshConfig, "placement", "moon"),
        (RefreshConfig, "timeout_s", 0),
    ],
)
def test_a_bad_setting_is_named(part: type, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        part(**{field: value})


def test_a_refresh_must_fit_a_segment() -> None:
    index, refresh = IndexConfig(segment_size=512), RefreshConfig(interval=1024)
    with pytest.raises(ValidationError, match=r"refresh.interval = 1024 .* index.segment_size = 512"):
        BackendConfig(index=index, refresh=refresh)
    BackendConfig(index=index, refresh=RefreshConfig(interval=1024, enabled=False))
