"""The curriculum: which rows each training step sees, and at which learning rate."""

from dataclasses import dataclass
from itertools import accumulate

SKIPS = 0.5
_TASKS = {
    "needles": 24,
    "few_numbers": 2,
    "few_words": 2,
    "few_uuids": 2,
    "dictionary": 9,
    "multi": 14,
    "tracking": 12,
    "people": 6,
    "quotes": 9,
    "word_lists": 2,
    "text": 12,
    "continue": 5,
    "copy": 4,
}
_EARLY = {**_TASKS, "copy": 20, "dictionary": 15, "word_lists": 1}


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `tokens` tokens; `lengths` are row lengths with their weights."""

    name: str
    steps: int
    tokens: int
    lengths: dict[int, float]
    tasks: dict[str, int]
    skip: float


@dataclass(frozen=True)
class Schedule:
    """Stages, and a learning rate that warms up, stays, and falls linearly to zero over the last part."""

    stages: tuple[Stage, ...]
    peak_rate: float = 4e-3
    warmup: int = 150
    constant_share: float = 0.5
    # The weight of the mean loss of text tokens; that of answer tokens is one.
    text_weight: float = 0.5

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        ends = accumulate(stage.steps for stage in self.stages)
        return next(stage for stage, end in zip(self.stages, ends, strict=True) if step < end)

    def rate(self, step: int) -> float:
        start = self.constant_share * self.steps
        fall = (self.steps - step) / (self.steps - start) if step > start else 1.0
        return self.peak_rate * min(1.0, (step + 1) / self.warmup, fall)


REFERENCE = Schedule(
    stages=(
        Stage("short", 900, 65536, {512: 1}, _EARLY, 0.0),
        Stage("2k", 3400, 65536, {2048: 8, 512: 2}, _TASKS, SKIPS),
        Stage("8k", 2300, 65536, {8192: 8, 2048: 2}, _TASKS, SKIPS),
        Stage("32k", 1150, 65536, {32768: 8, 8192: 1, 2048: 1}, _TASKS, SKIPS),
        Stage("128k", 100, 131072, {131072: 8, 32768: 2}, {**_TASKS, "word_lists": 0}, 0.0),
    )
)
# Starts from the weights that REFERENCE leaves.
REFINE = Schedule(
    stages=(
        Stage("8k", 1700, 65536, {8192: 6, 2048: 3, 512: 1}, _TASKS, SKIPS),
        Stage("32k", 800, 65536, {32768: 6, 8192: 3, 2048: 1}, _TASKS, SKIPS),
        Stage("128k", 80, 131072, {131072: 6, 32768: 4}, {**_TASKS, "word_lists": 0}, 0.0),
    ),
    peak_rate=2.5e-3,
    warmup=50,
    constant_share=0.1,
    text_weight=0.2,
)
TINY = Schedule(
    stages=(
        Stage("short", 30, 2048, {512: 1}, _EARLY, 0.0),
        Stage("2k", 10, 4096, {2048: 1}, _TASKS, SKIPS),
    ),
    warmup=10,
)
SCHEDULES = {"reference": REFERENCE, "refine": REFINE, "tiny": TINY}
