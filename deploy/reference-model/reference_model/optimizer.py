"""Muon for the matrices, AdamW for embeddings and norms.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum; the scale 0.2·√max(rows, columns) gives its
updates the size of AdamW's (Liu et al., arXiv 2502.16982, eq. 4), so both share one learning rate.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn


class Optimizer:
    """One step of Muon and AdamW over a model's named parameters."""

    def __init__(
        self,
        model: nn.Module,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        decay: float = 0.1,
    ) -> None:
        self.momentum, self.betas, self.decay = momentum, betas, decay
        named = dict(model.named_parameters())
        self.matrices = {name: p for name, p in named.items() if p.ndim == 2 and "embed" not in name}
        self.others = {name: p for name, p in named.items() if name not in self.matrices}
        self.steps = 0
        self.state = {f"{name}.m": torch.zeros_like(p) for name, p in named.items()}
        self.state |= {f"{name}.v": torch.zeros_like(p) for name, p in self.others.items()}
        self._shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, p in self.matrices.items():
            self._shapes[min(p.shape), max(p.shape)].append(name)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Updates the parameters from their gradients and clears these."""
        self.steps += 1
        self._adamw(rate)
        for names in self._shapes.values():
            self._muon(names, rate)

    def _adamw(self, rate: float) -> None:
        one, two = self.betas
        for name, p in self.others.items():
            assert p.grad is not None
            m, v = self.state[f"{name}.m"], self.state[f"{name}.v"]
            m.lerp_(p.grad, 1 - one)
            v.lerp_(p.grad.square(), 1 - two)
            scale = (v / (1 - two**self.steps)).sqrt_().add_(1e-10)
            p.addcdiv_(m, scale, value=-rate / (1 - one**self.steps))
            p.grad = None

    def _muon(self, names: list[str], rate: float) -> None:
        parameters: list[Tensor] = [self.matrices[name] for name in names]
        grads = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[f"{name}.m"] for name in names]
        torch._foreach_lerp_(momenta, grads, 1 - self.momentum)
        nesterov = torch._foreach_lerp(grads, momenta, self.momentum)
        wide = [update if update.shape[0] <= update.shape[1] else update.T for update in nesterov]
        stacked = orthogonalise(torch.stack(wide))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * self.decay)
        for p, update in zip(parameters, stacked.unbind(), strict=True):
            p.add_(update if p.shape[0] <= p.shape[1] else update.T, alpha=-rate * scale)
            p.grad = None


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """[batch, rows ≤ columns] → nearly U·Vᵀ of each, by a quintic Newton–Schulz iteration in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y: Tensor = x.bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.to(x.dtype)
