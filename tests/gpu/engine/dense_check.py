"""Whether an engine's answers are those of dense attention, token by token."""

from collections import Counter
from typing import Any

from engines import Engine

TOP = 20


class DenseCheck:
    """Has the engine prefill what it has answered, which is dense attention, and compares each token.

    A token is right if dense attention finds none more probable, given all before it; within `tie`, as the
    last digits of a logit depend on the order of sums.

    Args:
        engine: with the tactic backend.
        tie: largest difference of log-probabilities that the dtype does not tell.
    """

    def __init__(self, engine: Engine, tie: float) -> None:
        self.seen: Counter[str] = Counter()
        self.worst = 0.0
        self.wrong: list[dict[str, Any]] = []
        self._engine = engine
        self._tie = tie

    async def check(self, name: str, prompt: list[int], answer: list[int], *, rid: str) -> None:
        """Compares an answer, whether it is complete or not.

        Args:
            name: of the request, for the result.
            prompt: token ids.
            answer: token ids.
            rid: for the request that checks it.
        """
        if not answer:
            return
        asked = {"return_logprob": True, "top_logprobs_num": TOP, "logprob_start_len": len(prompt) - 1}
        meta: dict[str, Any] = {}
        async for output in self._engine.stream([*prompt, *answer], 1, {"mode": "dense"}, rid=rid, **asked):
            meta = output["meta_info"]
        # The first one is of the prompt's last token.
        own, tops = meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:]
        assert [entry[1] for entry in own] == answer, f"{name}: SGLang tells of other tokens"
        self.seen["answers"] += 1
        for i, (entry, top) in enumerate(zip(own, tops, strict=True)):
            best = float(top[0][0])
            gap = best - float(entry[0])
            self.seen["tokens"] += 1
            self.seen["ties"] += 0 < gap <= self._tie
            # How many of the vocabulary would have passed: the fewer, the more the check is worth.
            self.seen["would_pass"] += sum(best - float(other[0]) <= self._tie for other in top)
            self.worst = max(self.worst, gap)
            if gap > self._tie:
                self.seen["wrong"] += 1
                self.wrong.append({"request": name, "token": i, "of": len(answer), "gap": gap})

    def result(self) -> dict[str, Any]:
        """Counts, and what was wrong."""
        tokens = self.seen["tokens"]
        return {
            "answers": self.seen["answers"],
            "tokens": tokens,
            "wrong": self.seen["wrong"],
            "ties": self.seen["ties"],
            "tie": self._tie,
            "largest_gap": self.worst,
            "tokens_that_would_pass_mean": self.seen["would_pass"] / max(1, tokens),
            "wrong_ones": self.wrong[:20],
        }
