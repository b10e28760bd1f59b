import tomllib
from pathlib import Path

import pytest

from tactic.service.config import ConfigError, Settings, load_settings, render_toml


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TACTIC_CONFIG", "TACTIC_MODEL", "TACTIC_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_flag_wins_over_environment_over_file_over_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("tactic.toml").write_text("[index]\nsinks = 1\nthreshold = 0.5\n[refresh]\ninterval = 7\n")
    monkeypatch.setenv("TACTIC_INDEX__SINKS", "2")
    monkeypatch.setenv("TACTIC_INDEX__THRESHOLD", "0.6")
    loaded = load_settings({"index.sinks": 3})
    assert loaded.settings.index.sinks == 3
    assert loaded.settings.index.threshold == 0.6
    assert loaded.settings.refresh.interval == 7
    assert loaded.settings.index.cluster_size == 32
    assert loaded.origins == {
        "index.sinks": "flag",
        "index.threshold": "environment TACTIC_INDEX__THRESHOLD",
        "refresh.interval": "tactic.toml",
    }


def test_defaults_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTIC_INDEX__SINKS", "2")
    assert Settings().index.sinks == 16


def test_short_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTIC_REDIS_URL", "redis://db:6379/1")
    monkeypatch.setenv("TACTIC_MODEL", "/models/a")
    loaded = load_settings()
    assert loaded.settings.redis.url == "redis://db:6379/1"
    assert loaded.settings.engine.model_path == Path("/models/a")
    assert loaded.origins["redis.url"] == "environment TACTIC_REDIS_URL"


def test_config_file_by_variable_and_by_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.toml").write_text("[index]\nsinks = 1\n")
    Path("b.toml").write_text("[index]\nsinks = 2\n")
    monkeypatch.setenv("TACTIC_CONFIG", "a.toml")
    assert load_settings().settings.index.sinks == 1
    assert load_settings(config_file=Path("b.toml")).settings.index.sinks == 2


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("index.threshold", "0", ("index.threshold", "greater than 0", "'0'")),
        ("index.threshold", "1.5", ("less than or equal to 1",)),
        ("index.segment_size", "1000", ("multiple of 512",)),
        ("index.cluster_size", "33", ("16, 32 or 64",)),
        ("frontend.port", "70000", ("65535",)),
        ("redis.url", "http://x", ("redis://",)),
        ("workers.supervisor_address", "localhost", ("host:port",)),
        ("refresh.timeout_s", "inf", ("finite number",)),
        ("refresh.scope", "everything", ("'tail' or 'full'",)),
    ],
)
def test_a_wrong_value_is_named_with_its_limit_and_origin(
    name: str, value: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert "(from flag)" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTIC_INDEX__SINKS", "-1")
    with pytest.raises(ConfigError, match=r"(?s)TACTIC_INDEX__SINKS.*refresh\.interval"):
        load_settings({"refresh.interval": 0})


def test_misspelt_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"index\.sink: there is no such setting"):
        load_settings({"index.sink": 1})
    monkeypatch.setenv("TACTIC_INDX__SINKS", "1")
    with pytest.raises(ConfigError, match="TACTIC_INDX__SINKS: there is no section INDX"):
        load_settings()


@pytest.mark.parametrize(("text", "words"), [("[index", "cannot read"), ("index = 3\n", "index:")])
def test_a_broken_file_is_named(text: str, words: str) -> None:
    Path("tactic.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_settings()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_settings(config_file=Path("nowhere.toml"))


def test_placement_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="placement = dedicated needs a GPU"):
        load_settings({"engine.device": "cpu", "refresh.placement": "dedicated"})


@pytest.mark.parametrize("path", ['/a "b"\\c', "/models/🐋/ü", "/a\x01\n\x7f"])
def test_rendered_toml_reads_back_the_same(path: str) -> None:
    settings = load_settings({"engine.model_path": path, "index.threshold": 0.75}).settings
    Path("out.toml").write_text(render_toml(settings), encoding="utf-8")
    assert load_settings(config_file=Path("out.toml")).settings == settings


def test_every_setting_is_rendered_with_its_meaning() -> None:
    lines = render_toml(Settings()).splitlines()
    assert "# None" not in lines
    parsed = tomllib.loads("\n".join(lines))
    for section, model in Settings():
        if section not in ("state_dir", "engine"):
            assert set(parsed[section]) == set(type(model).model_fields)


def test_deployment_spec_carries_every_section() -> None:
    settings = load_settings(
        {"engine.model_path": "/m", "index.cluster_size": 16, "refresh.interval": 64, "workers.decode": 2}
    ).settings
    spec = settings.to_deployment_spec("127.0.0.1:9")
    assert (spec.listen, spec.engine.model_path, spec.decode_workers) == ("127.0.0.1:9", "/m", 2)
    assert (spec.index.cluster_size, spec.refresh.interval, spec.refresh.enabled) == (16, 64, True)


def test_deployment_spec_needs_a_model() -> None:
    with pytest.raises(ConfigError, match=r"engine\.model_path is not set.*--model"):
        Settings().to_deployment_spec()
