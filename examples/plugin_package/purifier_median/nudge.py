"""Attack ``nudge``: small steps along the sign of the gradient, from a random start."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purifier import Attack, SampleGenerator, Target, Threat


@dataclass(frozen=True)
class Nudge(Attack):
    """Moves every pixel up or down by the same amount in each step.

    Parameters
    ----------
    steps
        Gradient steps, at least 1.
    """

    needs = "gradient"
    norms = ("linf",)

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        """Adversarial pixels, (N, C, H, W); purifier projects and judges them."""

        def margin(logits: Tensor) -> Tensor:
            right = labels.unsqueeze(1)
            best_wrong = logits.scatter(1, right, -torch.inf).amax(1)
            return best_wrong - logits.gather(1, right).squeeze(1)  # (N,), above 0: misclassified

        offset = 2 * generator.uniform(pixels.shape[1:], like=pixels) - 1
        nudged = threat.project(pixels + threat.eps * offset, pixels)
        for _ in range(self.steps):
            gradient, _ = target.gradient(nudged, margin)
            nudged = threat.project(nudged + 2 * threat.eps / self.steps * gradient.sign(), pixels)
        return nudged
