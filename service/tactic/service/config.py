"""Settings of a deployment: one model, read from flags, environment, a TOML file and defaults."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic import BaseModel as PydanticModel
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tactic.worker.v1 import supervisor_pb2 as pb

DEFAULT_CONFIG_FILE = "tactic.toml"
CONFIG_FILE_VARIABLE = "TACTIC_CONFIG"
ENV_PREFIX = "TACTIC_"
ENV_DELIMITER = "__"
# Short names for what is set most often outside a file.
ENV_ALIASES = {"TACTIC_REDIS_URL": "redis.url", "TACTIC_MODEL": "engine.model_path"}

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _host_and_port(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if value and (not separator or not host or not port.isdigit() or int(port) > 65535):
        raise ValueError("must be host:port, for example 127.0.0.1:7800")
    return value


def _segment_size(value: int) -> int:
    if value % 512:
        raise ValueError("must be a multiple of 512")
    return value


def _redis_url(value: str) -> str:
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


Address = Annotated[str, AfterValidator(_host_and_port)]


class _Section(PydanticModel):
    # Attribute docstrings are what `tactic config show` and the generated TOML print.
    model_config = {
        "extra": "forbid",
        "frozen": True,
        "use_attribute_docstrings": True,
        "protected_namespaces": (),
    }


class FrontendSettings(_Section):
    """The gRPC front end, and what it decides for its clients."""

    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: Port = 7700
    """TCP port; 0 lets the system pick one."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Front ends to start; the second listens on port + 1, and so on."""
    shutdown_grace_s: Seconds = 10.0
    """Seconds that running turns get to finish when the front end is stopped."""
    default_max_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens to generate when a request sets no max_tokens."""
    max_message_bytes: Annotated[int, Field(ge=65536, le=2**31 - 1)] = 64 * 2**20
    """Largest gRPC message."""
    lease_ttl_s: Seconds = 15.0
    """Seconds after which a session's lease, if its front end died, may be taken over."""
    replay_ttl_s: Seconds = 600.0
    """Seconds that the frames of a finished turn stay there for resume_after_seq."""
    worker_wait_s: Seconds = 60.0
    """Seconds that a running turn waits for a decode worker when its own has died."""


class RedisSettings(_Section):
    """Where sessions live."""

    url: Annotated[str, AfterValidator(_redis_url)] = ""
    """URL of a Redis or Valkey server; empty starts an embedded one in state_dir. Also TACTIC_REDIS_URL."""
    appendfsync: Literal["everysec", "always"] = "always"
    """Embedded server: `always` loses nothing acknowledged; `everysec` is faster and may lose two seconds."""


class EngineSettings(_Section):
    """The SGLang engine inside each decode worker."""

    model_path: Path | None = None
    """Directory of a Hugging Face checkpoint. Also TACTIC_MODEL."""
    model_name: str = ""
    """Name under which it is served; empty takes the directory's name."""
    context_length: Annotated[int, Field(ge=0)] = 0
    """Most positions of a request; 0 takes the checkpoint's own limit."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs of one decode worker."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations."""
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = "auto"
    """Type of the KV cache."""
    max_total_tokens: Annotated[int, Field(ge=0)] = 0
    """Positions in the KV pool; 0: what fits into the memory of a GPU, 262,144 on a CPU."""
    mem_fraction_static: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a GPU's memory for weights, KV cache and index; 0 takes the engine's default."""
    max_running_requests: Annotated[int, Field(ge=1)] = 16
    """Requests decoded in one batch."""
    chunked_prefill_size: Annotated[int, Field(ge=0)] = 0
    """Positions of one prefill step; 0 takes the engine's default, 4,096 on a CPU."""
    random_weights: bool = False
    """Draw random weights instead of loading them: for shapes without a checkpoint."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the engine runs; auto takes a GPU if there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of each rank of an engine on the CPU; 0 shares all cores out to its ranks."""
    random_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the engine."""


class IndexSettings(_Section):
    """The cluster index over the keys, and how much of it decode attention reads."""

    cluster_size: Literal[16, 32, 64] = 32
    """Average tokens in a cluster."""
    segment_size: Annotated[int, Field(ge=512, le=8192), AfterValidator(_segment_size)] = 8192
    """Positions clustered together; a multiple of 512."""
    sinks: Annotated[int, Field(ge=0, le=1024)] = 16
    """Positions at the start that are always attended."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Target share P of the attention weight, for requests that set none."""
    estimator: Literal["guarded", "fit", "centroid", "exact"] = "guarded"
    """How the share is estimated, for requests that say nothing."""
    memory_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the KV cache's bytes that the index may take; 0 takes what indexing all of it needs."""
    min_clustered: Annotated[int, Field(ge=1)] = 4096
    """Requests with fewer clustered positions are attended densely."""
    check_integrity: bool = False
    """Verify the index at every step: slow, for finding bugs."""


class RefreshSettings(_Section):
    """Re-clustering during long generations."""

    enabled: bool = True
    """Whether clustering workers are asked at all."""
    interval: Annotated[int, Field(ge=1)] = 2048
    """Decode steps of a request between two refreshes."""
    scope: Literal["tail", "full"] = "tail"
    """What is clustered again: the open segment and the tail, or the whole context."""
    placement: Literal["cpu", "colocated", "dedicated"] = "cpu"
    """Where clustering workers run: spare cores, a share of a decode GPU, or a GPU of their own."""
    mps_percentage: Annotated[int, Field(ge=0, le=100)] = 5
    """Colocated: percentage of the GPU's multiprocessors that they get, by NVIDIA MPS; 0 does without MPS."""
    duty: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the time that they compute; 0 takes all of it, or 0.05 if colocated without MPS."""
    timeout_s: Seconds = 60.0
    """Seconds after which a refresh is given up; the old index stays."""


class WorkersSettings(_Section):
    """How many workers there are, and where."""

    decode: Annotated[int, Field(ge=1)] = 1
    """Decode workers; sessions are spread over them."""
    clustering: Annotated[int, Field(ge=0)] = 1
    """Clustering workers that compute refreshes."""
    host: str = "127.0.0.1"
    """Interface on which decode workers listen."""
    supervisor_address: Address = ""
    """host:port of a supervisor that already runs; empty starts one."""
    ray_address: str = ""
    """Address of a Ray cluster; empty starts a local one."""
    start_timeout_s: Seconds = 600.0
    """Seconds that workers get to load the model and become ready."""


class Settings(BaseSettings):
    """All settings. `Settings()` holds the defaults; `load_settings` reads the sources."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
    )

    state_dir: Path = Path(".tactic")
    """Where a deployment keeps its data, logs and the state file that `status` and `down` read."""
    frontend: FrontendSettings = FrontendSettings()
    redis: RedisSettings = RedisSettings()
    engine: EngineSettings = EngineSettings()
    index: IndexSettings = IndexSettings()
    refresh: RefreshSettings = RefreshSettings()
    workers: WorkersSettings = WorkersSettings()

    @model_validator(mode="after")
    def _placement_fits_device(self) -> "Settings":
        if self.engine.device == "cpu" and self.refresh.placement != "cpu":
            raise ValueError(
                f"refresh.placement = {self.refresh.placement} needs a GPU, but engine.device = cpu"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves the layering to `load_settings`, which knows where each value came from."""
        return (init_settings,)

    def to_deployment_spec(self, listen: str = "127.0.0.1:0") -> pb.DeploymentSpec:
        """Builds what the supervisor is to run.

        Args:
            listen: host:port on which the supervisor listens; port 0 picks one.

        Raises:
            ConfigError: if `engine.model_path` is not set.
        """
        if self.engine.model_path is None:
            raise ConfigError(
                "engine.model_path is not set: give the directory of a Hugging Face checkpoint "
                "(`tactic up --model DIR`, TACTIC_MODEL, or model_path under [engine] in tactic.toml)"
            )
        engine = self.engine.model_dump()
        engine["model_path"] = str(self.engine.model_path.expanduser().resolve())
        return pb.DeploymentSpec(
            listen=listen,
            ray_address=self.workers.ray_address,
            engine=pb.EngineSpec(**engine),
            index=pb.IndexSpec(**self.index.model_dump()),
            refresh=pb.RefreshSpec(**self.refresh.model_dump()),
            decode_workers=self.workers.decode,
            clustering_workers=self.workers.clustering,
            worker_host=self.workers.host,
        )


def flat_values(settings: Settings) -> dict[str, Any]:
    """Returns every setting by dotted name, paths as text."""
    return _flatten(settings.model_dump(mode="json"))


def render_toml(settings: Settings) -> str:
    """Returns the settings as a TOML document with each field's meaning above it."""
    top = [line for name in Settings.model_fields for line in _toml_entry(settings, name)]
    parts = ["\n".join(top)]
    for name in Settings.model_fields:
        section = getattr(settings, name)
        if isinstance(section, _Section):
            lines = [f"# {type(section).__doc__}", f"[{name}]"]
            lines += [line for field in type(section).model_fields for line in _toml_entry(section, field)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _toml_entry(model: PydanticModel, name: str) -> list[str]:
    value = getattr(model, name)
    if isinstance(value, _Section):
        return []
    entry = f"# {name} =" if value is None else f"{name} = {_toml_value(value)}"
    return [f"# {type(model).model_fields[name].description}", entry]


def _toml_value(value: Any) -> str:
    # JSON strings, numbers and booleans are TOML ones too, but for surrogate pairs and a bare DEL.
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


class ConfigError(ValueError):
    """A setting is missing, unknown or out of its limits; the message names it and where it came from."""


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each dotted name that was set, where: `flag`, an environment variable or a file."""

    settings: Settings
    origins: dict[str, str]


def load_settings(flags: Mapping[str, Any] | None = None, config_file: Path | None = None) -> Loaded:
    """Reads flags, environment, TOML file and defaults; earlier ones win.

    Args:
        flags: values by dotted name, for example `{"frontend.port": 7701}`.
        config_file: TOML file; None takes $TACTIC_CONFIG, else ./tactic.toml if it is there.

    Raises:
        ConfigError: naming every field that is wrong, its limit, and where the value came from.
    """
    layers = [{name: (value, "flag") for name, value in (flags or {}).items()}, _read_environment()]
    if file := _find_config_file(config_file):
        layers.append({name: (value, str(file)) for name, value in _flatten(_read_toml(file)).items()})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in reversed(layers):
        for name, (value, origin) in layer.items():
            values[name], origins[name] = value, origin
    try:
        return Loaded(Settings.model_validate(_nest(values)), origins)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from None


def _find_config_file(given: Path | None) -> Path | None:
    if given is None and os.environ.get(CONFIG_FILE_VARIABLE):
        given = Path(os.environ[CONFIG_FILE_VARIABLE])
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"configuration file {given} does not exist")
        return given
    default = Path(DEFAULT_CONFIG_FILE)
    return default if default.is_file() else None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None


def _read_environment() -> dict[str, tuple[Any, str]]:
    """Returns the values of TACTIC_* and the variable of each, by dotted name."""
    for variable in os.environ:
        section, delimiter, _ = variable.removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if variable.startswith(ENV_PREFIX) and delimiter and section.lower() not in Settings.model_fields:
            sections = ", ".join(name.upper() for name in Settings.model_fields)
            raise ConfigError(f"environment {variable}: there is no section {section}; there are {sections}")
    try:
        flat = _flatten(EnvSettingsSource(Settings)())
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None
    values = {name: (value, f"environment {_variable(name)}") for name, value in flat.items()}
    for variable, name in ENV_ALIASES.items():
        if variable in os.environ:
            values[name] = os.environ[variable], f"environment {variable}"
    return values


def _variable(name: str) -> str:
    return ENV_PREFIX + name.replace(".", ENV_DELIMITER).upper()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{section} is a section and a value at once")
        node[field] = value
    return tree


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such setting; `tactic config show` lists them all"
        elif name:
            message = f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"
        origin = f" (from {origins[name]})" if name in origins else ""
        lines.append(f"{name}: {message}{origin}" if name else message)
    return "\n".join(lines)
