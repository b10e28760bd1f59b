"""Whether an engine's answers are those of dense attention, token by token."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from engines import Engine

TOP = 20


class DenseCheck:
    """Has the engine prefill what it has answered, which is dense attention, and compares each token.

    A token is right if dense attention finds none more probable, given all before it; within `tie`, as the
    last digits of a logit depend on the order of sums. Where the gap is larger, dense attention decodes the
    same prompt: a token that it comes to as well is one that prefill and decoding round differently.

    Args:
        engine: with the tactic backend.
        tie: largest difference of log-probabilities that the dtype does not tell.
        vocabulary: tokens of the model.
    """

    def __init__(self, engine: Engine, tie: float, vocabulary: int) -> None:
        self.seen: Counter[str] = Counter()
        self.worst = 0.0
        self.worst_rounded = 0.0
        self.wrong: list[dict[str, Any]] = []
        self._engine = engine
        self._tie = tie
        self._last = vocabulary - 1

    async def check(
        self,
        name: str,
        prompt: list[int],
        answer: list[int],
        *,
        new_rid: Callable[[], str],
        about: dict[str, Any],
    ) -> None:
        """Compares an answer, whether it is complete or not.

        Args:
            name: of the request, for the result.
            prompt: token ids.
            answer: token ids.
            new_rid: makes ids for the requests that check it.
            about: what else is to be told of a request whose tokens are wrong.
        """
        if not answer:
            return
        own, tops = await self._prefilled(prompt, answer, new_rid)
        self.seen["answers"] += 1
        decoded: list[int] | None = None
        for i, (entry, top) in enumerate(zip(own, tops, strict=True)):
            best = float(top[0][0])
            gap = best - float(entry[0])
            self.seen["tokens"] += 1
            self.seen["ties"] += 0 < gap <= self._tie
            # How many of the vocabulary would have passed: the fewer, the more the check is worth.
            self.seen["would_pass"] += sum(best - float(other[0]) <= self._tie for other in top)
            self.worst = max(self.worst, gap)
            if gap <= self._tie:
                continue
            if decoded is None:
                decoded = await self._decoded(prompt, len(answer), new_rid)
            if decoded[: i + 1] == answer[: i + 1]:
                self.seen["rounded"] += 1
                self.worst_rounded = max(self.worst_rounded, gap)
                continue
            self.seen["wrong"] += 1
            same = sum(
                1
                for _ in itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(decoded, answer, strict=False)
                )
            )
            self.wrong.append(
                {"request": name, "token": i, "of": len(answer), "gap": gap, "same_as_dense": same} | about
            )

    async def _prefilled(
        self, prompt: list[int], answer: list[int], new_rid: Callable[[], str]
    ) -> tuple[list[Any], list[Any]]:
        """Log-probabilities of the answer's tokens, and the highest ones in their places."""
        # SGLang tells of the vocabulary's last token as if it were the first one.
        told = [token if token < self._last else 0 for token in answer]
        asked = {"return_logprob": True, "top_logprobs_num": TOP, "logprob_start_len": len(prompt) - 1}
        meta: dict[str, Any] = {}
        async for output in self._engine.stream(
            [*prompt, *answer], 1, {"mode": "dense"}, rid=new_rid(), **asked
        ):
            meta = output["meta_info"]
        # The first one is of the prompt's last token.
        own, tops = meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:]
        assert [entry[1] for entry in own] == told, f"SGLang tells of other tokens than {told}: {own}"
        return own, tops

    async def _decoded(self, prompt: list[int], tokens: int, new_rid: Callable[[], str]) -> list[int]:
        """What dense attention answers."""
        answer: list[int] = []
        async for output in self._engine.stream(prompt, tokens, {"mode": "dense"}, rid=new_rid()):
            answer += output["output_ids"]
        return answer

    def result(self) -> dict[str, Any]:
        """Counts, and what was wrong."""
        tokens = self.seen["tokens"]
        return {
            "answers": self.seen["answers"],
            "tokens": tokens,
            "wrong": self.seen["wrong"],
            "as_dense_decodes": self.seen["rounded"],
            "largest_gap_of_these": self.worst_rounded,
            "ties": self.seen["ties"],
            "tie": self._tie,
            "largest_gap": self.worst,
            "tokens_that_would_pass_mean": self.seen["would_pass"] / max(1, tokens),
            "wrong_ones": self.wrong[:20],
        }
