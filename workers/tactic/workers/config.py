"""Settings that travel from the decode worker to the SGLang processes that it spawns."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

VARIABLE = "TACTIC_BACKEND"
"""Environment variable that carries a BackendConfig as JSON."""

SHARED_DUTY = 0.05
"""Without MPS two processes take turns on a GPU, and each turn of the other holds up a decode step."""


class IndexConfig(BaseModel):
    """Clustering and selection; the fields mirror `tactic.worker.v1.IndexSpec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster_size: Literal[16, 32, 64] = 32
    segment_size: int = Field(default=8192, ge=512, le=8192, multiple_of=512)
    sinks: int = Field(default=16, ge=0, le=1024)
    threshold: float = Field(default=0.9, gt=0, le=1)
    estimator: Literal["guarded", "fit", "centroid", "exact"] = "guarded"
    memory_share: float = Field(default=0.0, ge=0, le=0.5)
    """0 takes what indexes every token of the KV pool."""
    check_integrity: bool = False
    min_clustered: int = Field(default=4096, ge=1)
    """Requests with fewer clustered positions are attended densely."""


class RefreshConfig(BaseModel):
    """When an index is refreshed; the fields mirror `tactic.worker.v1.RefreshSpec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    interval: int = Field(default=2048, ge=1)
    scope: Literal["tail", "full"] = "tail"
    placement: Literal["cpu", "colocated", "dedicated"] = "cpu"
    timeout_s: float = Field(default=60.0, gt=0)
    mps_percentage: int = Field(default=5, ge=0, le=100)
    """Share of a decode GPU's multiprocessors for a colocated actor, by NVIDIA MPS; 0 runs it without MPS."""
    duty: float = Field(default=0.0, ge=0, le=1)
    """Share of the time that an actor computes; 0 takes all of it, or `SHARED_DUTY` colocated without MPS."""

    @property
    def uses_mps(self) -> bool:
        """Whether clustering actors and the engine share a GPU through MPS."""
        return self.placement == "colocated" and self.mps_percentage > 0

    @property
    def actual_duty(self) -> float:
        """`duty`, or its default for the placement."""
        unbounded = self.placement != "colocated" or self.uses_mps
        return self.duty or (1.0 if unbounded else SHARED_DUTY)


class BackendConfig(BaseModel):
    """All that the `tactic` attention backend needs to know.

    Attributes:
        index: clustering and selection.
        refresh: when, where and how much is clustered anew.
        link: ZeroMQ address of the decode worker's end; empty where there is none (no refresh, no
            statistics).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: IndexConfig = IndexConfig()
    refresh: RefreshConfig = RefreshConfig()
    link: str = ""

    @model_validator(mode="after")
    def _refresh_can_fill_a_segment(self) -> BackendConfig:
        if self.refresh.enabled and self.refresh.interval > self.index.segment_size:
            raise ValueError(
                f"refresh.interval = {self.refresh.interval} must not exceed "
                f"index.segment_size = {self.index.segment_size}"
            )
        return self

    @classmethod
    def from_environment(cls) -> BackendConfig:
        """The configuration that the parent process left, or the defaults.

        Raises:
            pydantic.ValidationError: naming the field and its limit.
        """
        text = os.environ.get(VARIABLE)
        return cls.model_validate_json(text) if text else cls()

    def to_environment(self) -> None:
        """Leaves the configuration for processes that this one spawns."""
        os.environ[VARIABLE] = self.model_dump_json()
