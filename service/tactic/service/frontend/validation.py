"""What requests must look like. Each check returns the violations that it finds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from tactic.service.frontend.errors import Code, ServiceError, Violation, invalid
from tactic.service.text import Message
from tactic.v1 import generation_pb2, types_pb2

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ROLES = ("system", "user", "assistant")
ESTIMATORS = ("guarded", "fit", "centroid", "exact")
MAX_TEMPERATURE = 10.0
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1
MAX_LABELS, MAX_LABEL_CHARACTERS = 64, 1024
MAX_PAGE = 1000


def require(violations: Iterable[Violation], reason: str = "INVALID_REQUEST") -> None:
    """Raises INVALID_ARGUMENT if there are violations."""
    if found := list(violations):
        raise invalid(reason, *found)


def check_name(field: str, value: str, *, optional: bool = False) -> list[Violation]:
    """Names of sessions, turns and appends."""
    if NAME.fullmatch(value) or (optional and not value):
        return []
    return [Violation(field, f"must be 1 to 64 characters of [A-Za-z0-9_-], not {value[:80]!r}")]


def check_labels(labels: Iterable[tuple[str, str]]) -> list[Violation]:
    """Labels of a session."""
    pairs = list(labels)
    if len(pairs) > MAX_LABELS:
        return [Violation("labels", f"at most {MAX_LABELS} are taken, not {len(pairs)}")]
    return [
        Violation(f"labels[{key[:16]}]", f"key and value may have {MAX_LABEL_CHARACTERS} characters each")
        for key, value in pairs
        if max(len(key), len(value)) > MAX_LABEL_CHARACTERS
    ]


def check_messages(messages: Iterable[generation_pb2.Message]) -> list[Violation]:
    """Messages of a chat turn."""
    messages = list(messages)
    if not messages:
        return [Violation("messages", "must have at least one message")]
    found = []
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            found.append(Violation(f"messages[{i}].role", f"must be one of {', '.join(ROLES)}"))
        if not message.content:
            found.append(Violation(f"messages[{i}].content", "must not be empty"))
    return found


def plain_messages(messages: Iterable[generation_pb2.Message]) -> list[Message]:
    """Returns messages as the template takes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def check_sampling(sampling: types_pb2.SamplingOptions) -> list[Violation]:
    """How tokens are drawn."""
    found = []
    if not 0 <= sampling.temperature <= MAX_TEMPERATURE:
        found.append(
            Violation(
                "sampling.temperature", f"must be in [0, {MAX_TEMPERATURE:g}], not {sampling.temperature:g}"
            )
        )
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        found.append(Violation("sampling.top_p", f"must be in (0, 1], not {sampling.top_p:g}"))
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        found.append(Violation("sampling.max_tokens", "must be at least 1"))
    if sampling.seed > MAX_SEED:
        found.append(Violation("sampling.seed", f"must be at most {MAX_SEED}"))
    if sampling.logprobs > MAX_LOGPROBS:
        found.append(
            Violation("sampling.logprobs", f"must be at most {MAX_LOGPROBS}, not {sampling.logprobs}")
        )
    if len(sampling.stop) > MAX_STOPS:
        found.append(Violation("sampling.stop", f"at most {MAX_STOPS} are taken, not {len(sampling.stop)}"))
    for i, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            found.append(
                Violation(
                    f"sampling.stop[{i}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters, not {len(stop)}"
                )
            )
    return found


def check_tactic(tactic: types_pb2.TacticOptions) -> list[Violation]:
    """Options of the sparse attention."""
    found = []
    if tactic.mode not in types_pb2.AttentionMode.values():
        found.append(Violation("tactic.mode", f"unknown mode {tactic.mode}"))
    if tactic.HasField("threshold") and not (0 < tactic.threshold <= 1 and math.isfinite(tactic.threshold)):
        found.append(Violation("tactic.threshold", f"must be in (0, 1], not {tactic.threshold:g}"))
    if tactic.HasField("estimator") and tactic.estimator not in ESTIMATORS:
        found.append(
            Violation(
                "tactic.estimator", f"must be one of {', '.join(ESTIMATORS)}, not {tactic.estimator[:80]!r}"
            )
        )
    return found


def check_room(field: str, size: int, context_length: int) -> None:
    """Raises INVALID_ARGUMENT if a context of `size` tokens leaves no room to generate one."""
    if size + 1 > context_length:
        text = (
            f"the context would have {size} tokens; the model takes {context_length - 1} and one to generate"
        )
        raise invalid("CONTEXT_TOO_LONG", Violation(field, text), size=size, limit=context_length - 1)


def unknown_model(name: str, served: str) -> ServiceError:
    """Builds the refusal of a model that is not served."""
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    text = f"model {shown!r} is not served here; {served!r} is"
    return ServiceError(
        Code.NOT_FOUND,
        "MODEL_NOT_FOUND",
        text,
        violations=[Violation("model", text)],
        metadata={"served": served},
    )
