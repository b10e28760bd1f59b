"""The paper's estimator: exact outliers, then a fitted curve (arXiv 2502.12216, section 4.3)."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Self

import torch
from torch import Tensor

from tactic.kernels.estimators.base import Estimator, Evidence
from tactic.kernels.estimators.exact import Exact
from tactic.kernels.index.options import DecodeOptions


@dataclass(frozen=True)
class Fit(Estimator):
    """Distribution fitting.

    The weights of the first `exact_fraction` of the ranks are computed. Beyond them y = a/x + b, by the mean
    weights m1, m2 of two windows of ranks at x1, x2: a = (m1 - m2) / (1/x1 - 1/x2), b = m1 - a/x1.
    The curve is kept monotone (a ≥ 0; else a = 0 and b = (m1 + m2)/2) and non-negative (0 from its root on).
    Where so few ranks exist that sampling would read them all, all are computed.

    Attributes:
        exact_fraction: share of the ranks computed exactly.
        windows: centres of the windows, as fractions of the ranks.
        window: ranks in each.
    """

    name: ClassVar[str] = "fit"
    exact_fraction: float = 0.02
    windows: tuple[float, float] = (0.1, 0.6)
    window: int = 64

    @classmethod
    def from_options(cls, options: DecodeOptions) -> Self:
        """The estimator with the settings in `options`."""
        return cls(options.exact_fraction, options.windows, options.window)

    def log_mass(self, evidence: Evidence) -> Tensor:
        """See `Estimator.log_mass`."""
        n, ends = evidence.ranking.index.ranks, evidence.ranking.ends
        exact = ceil(self.exact_fraction * n)
        if n <= exact + 2 * self.window:
            return Exact().log_mass(evidence)
        sampled, centres = self._sampled_ranks(n, exact, ends.device)
        logits = evidence.logits(sampled)
        peak = logits.amax(-1, keepdim=True)
        weights = torch.exp(logits - peak)

        head = torch.nn.functional.pad(weights[:, :exact].cumsum(-1), (1, 0))
        first, second = weights[:, exact:].view(-1, 2, self.window).mean(-1, keepdim=True).unbind(1)
        a, b = fit_curve(first, second, *centres)
        tail = curve_mass(a, b, exact, ends.clamp(min=exact))
        mass = head.gather(1, ends.clamp(max=exact)) + tail
        return mass.log() + peak

    def _sampled_ranks(self, n: int, exact: int, device: torch.device) -> tuple[Tensor, tuple[float, float]]:
        """The ranks to read (exact ones, then both windows) and the windows' centres, counted from 1."""
        begins = [min(max(exact, round(n * at) - self.window // 2), n - self.window) for at in self.windows]
        windows = [torch.arange(begin, begin + self.window, device=device) for begin in begins]
        centre = (self.window + 1) / 2
        return (
            torch.cat([torch.arange(exact, device=device), *windows]),
            (begins[0] + centre, begins[1] + centre),
        )


def fit_curve(m1: Tensor, m2: Tensor, x1: float, x2: float) -> tuple[Tensor, Tensor]:
    """A ≥ 0 and b of y = a/x + b through (x1, m1) and (x2, m2), x1 < x2; constant where m1 ≤ m2."""
    a = (m1 - m2) / (1 / x1 - 1 / x2)
    falling = a > 0
    return torch.where(falling, a, 0.0), torch.where(falling, m1 - a / x1, (m1 + m2) / 2)


def curve_mass(a: Tensor, b: Tensor, begin: int, ends: Tensor) -> Tensor:
    """Σ max(0, a/i + b) over begin < i ≤ ends in closed form.

    Args:
        a: `[Hq, 1]` fp32, ≥ 0.
        b: `[Hq, 1]` fp32; where it is negative the curve ends at its root -a/b.
        begin: ranks before the sum, ≥ 1.
        ends: `[Hq, K]` int64, ≥ begin.
    """
    root = torch.where(b < 0, torch.floor(-a / b.clamp(max=-torch.finfo(torch.float32).tiny)), torch.inf)
    last = torch.minimum(ends.float(), root.clamp(min=begin))
    start = last.new_tensor(begin)
    return (a * (_harmonic(last) - _harmonic(start)) + b * (last - start)).clamp(min=0)


def _harmonic(x: Tensor) -> Tensor:
    """1 + 1/2 + … + 1/x less Euler's constant; exact to fp32 from x = 3 on, where sums begin."""
    inverse = 1 / x
    return torch.log(x) + inverse / 2 - inverse.square() / 12 + inverse.pow(4) / 120
