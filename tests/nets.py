"""Two small classifiers of real images, trained once: `python tests/nets.py` writes their weights anew.

Trained anew they would differ between machines, as sums do in the last digit, and so would tests on 64 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from purifier import Threat
from purifier.data.loading import load_data

WEIGHTS = Path(__file__).with_name("nets.safetensors")
WIDTHS = {"net": 8, "hardened": 16}
HARDENED_EPS = 0.06


def trained(name: str) -> nn.Module:
    """`net`, or `hardened` against FGSM (Goodfellow et al. 2014) from a random start (Wong et al. 2020)."""
    net, prefix = _untrained(WIDTHS[name]), f"{name}."
    stored = load_file(WEIGHTS)
    net.load_state_dict({key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)})
    return net.eval().requires_grad_(False)


def _untrained(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
    )


def _train() -> dict[str, Tensor]:
    pixels, labels = load_data("fashion-mnist:train:3000").batch(range(3000))
    torch.manual_seed(0)
    net = _untrained(WIDTHS["net"])
    _fit(net, 3e-3, (torch.arange(3000).split(20) for _ in range(4)), lambda part: (pixels[part], labels[part]))
    torch.manual_seed(0)
    hardened = _untrained(WIDTHS["hardened"])
    _fit(
        hardened,
        2e-3,
        (torch.randperm(3000).split(50) for _ in range(5)),
        lambda part: (_fgsm(hardened, pixels[part], labels[part]), labels[part]),
    )
    nets = {"net": net, "hardened": hardened}
    return {f"{name}.{key}": value for name, one in nets.items() for key, value in one.state_dict().items()}


def _fit(
    net: nn.Module,
    rate: float,
    epochs: Iterator[tuple[Tensor, ...]],
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> None:
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for epoch in epochs:
        for part in epoch:
            pixels, labels = batch(part)
            optimizer.zero_grad()
            _loss(net, pixels, labels).backward()
            optimizer.step()


def _fgsm(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    start = pixels + HARDENED_EPS * (2 * torch.rand_like(pixels) - 1)
    leaf = start.clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(net, leaf, labels), leaf)
    return Threat("linf", HARDENED_EPS).project(leaf + 1.25 * HARDENED_EPS * gradient.sign(), pixels).detach()


def _loss(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(pixels), labels)


if __name__ == "__main__":
    save_file(_train(), WEIGHTS)
