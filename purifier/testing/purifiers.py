"""The conformance check of purifiers."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from ..contracts.bounded import Bounded
from ..contracts.checkpoint import load, save
from ..contracts.purifier import Purifier
from ..data.pixels import plain_range
from ..foreign_code import Attempt
from ..seeding import SampleGenerator
from ..specs import build
from .bounded import check_bounds
from .rules import check, close, images, span


def check_purifier(
    purifier: Purifier, shape: tuple[int, int, int] = (1, 28, 28), *, tmp_path: Path | None = None
) -> None:
    """Check a purifier on random images of ``shape`` (C, H, W); with ``tmp_path`` also its checkpoint."""
    purifier.eval()
    pixels = images(5, shape)
    before = pixels.clone()
    noise = purifier.draw(pixels, SampleGenerator(0, range(5)))
    purified = purifier.purify(pixels, noise)
    check(purified.shape == pixels.shape, "purify must keep the shape", purified.shape)
    check(purified.dtype == pixels.dtype, "purify must keep the dtype", purified.dtype)
    check(bool(((purified >= 0) & (purified <= 1)).all()), "purify must stay in [0, 1]", span(purified))
    check(torch.equal(pixels, before), "purify must not change its input", "a changed input")
    again = purifier.purify(pixels, noise)
    check(torch.equal(purified, again), "purify must be a pure function of pixels and noise", "a different result")
    singles = [purifier.purify(pixels[i : i + 1], None if noise is None else noise[i : i + 1]) for i in range(5)]
    check(
        close(purified, torch.cat(singles)),
        "an image's result must not depend on its batch",
        "a different result on its own",
    )
    if purifier.surrogate_purifies:
        check(
            close(purifier.surrogate(pixels, noise), purified),
            "surrogate must equal purify, as declared",
            "another result",
        )
    score = purifier.score(pixels)
    check(score.shape == (5,) and bool(score.isfinite().all()), "score must be (N,) and finite", score)
    redrawn = purifier.draw(pixels, SampleGenerator(0, range(5)))
    same = redrawn is None if noise is None else redrawn is not None and torch.equal(noise, redrawn)
    check(same, "draw must depend only on its generator", "a different draw from the same seed")
    _check_gradient(purifier, pixels, noise)
    _check_config(purifier)
    if isinstance(purifier, Bounded):
        check_bounds(purifier, pixels)
    if tmp_path is not None:
        file = save(purifier, tmp_path / "conformance.safetensors")
        loaded = load(file)
        check(
            close(loaded.purify(pixels, noise), purified),
            "a saved and loaded purifier must be the same",
            "a different result",
        )


def _check_gradient(purifier: Purifier, pixels: Tensor, noise: Tensor | None) -> None:
    leaf = pixels.clone().requires_grad_()
    route = purifier.purify if purifier.gradient == "exact" else purifier.surrogate
    outcome = route(leaf, noise)
    check(
        outcome.requires_grad,
        f"gradient={purifier.gradient!r} must be differentiable",
        "a result without a gradient",
    )
    # A constant weighting would hide a gradient that sums to zero.
    weights = images(len(pixels), tuple(pixels.shape[1:]), seed=1)
    (gradient,) = torch.autograd.grad((outcome * weights).sum(), leaf)
    check(bool(gradient.isfinite().all()), "gradients must be finite", "NaN or infinity")
    check(bool(gradient.any()), f"gradient={purifier.gradient!r} must not be zero everywhere", "zeros")
    if purifier.gradient == "exact":
        # In doubles, a tiny step shows every jump. A purifier that computes in floats, or rounds to them, is checked at
        # a step that floats can resolve; a straight-through estimator fails there too, because its jumps are large.
        with plain_range():  # into_range is straight-through beyond the range, where no slope could agree
            agrees = _follows_differences(purifier, pixels, noise, torch.float64, step=1e-7, tolerance=1e-2)
            agrees = agrees or _follows_differences(purifier, pixels, noise, torch.float32, step=1e-3, tolerance=5e-2)
        check(agrees, "gradient='exact' must agree with finite differences of purify", "a different slope")


def _follows_differences(
    purifier: Purifier, pixels: Tensor, noise: Tensor | None, dtype: torch.dtype, *, step: float, tolerance: float
) -> bool:
    """Whether autograd's slopes along three directions agree with central differences; False if it cannot run."""
    inner = pixels[:2].to(dtype) * 0.9 + 0.05
    held = None if noise is None else noise[:2].to(dtype if noise.is_floating_point() else noise.dtype)
    leaf = inner.clone().requires_grad_()
    weights = images(2, tuple(pixels.shape[1:]), seed=1).to(dtype)
    with Attempt() as attempt:
        moved = copy.deepcopy(purifier).to(dtype)
        outcome = moved.purify(leaf, held)
        (gradient,) = torch.autograd.grad((outcome * weights).sum(), leaf)
    if attempt.error is not None:
        return False
    length, floor = gradient.norm().item(), torch.finfo(dtype).eps / step * inner.numel() ** 0.5
    signs = [images(2, tuple(pixels.shape[1:]), seed=seed).to(dtype).round() * 2 - 1 for seed in (3, 4)]
    for direction in (gradient / gradient.abs().max(), *signs):
        slope = (gradient * direction).sum().item()
        with torch.no_grad():
            there, back = (moved.purify(inner + way * step * direction, held) for way in (1, -1))
        difference = ((there - back) * weights).sum().item() / (2 * step)
        if not abs(slope - difference) <= tolerance * max(length, abs(slope)) + floor:
            return False
    return True


def _check_config(purifier: Purifier) -> None:
    config = purifier.config
    frozen = dataclasses.is_dataclass(config) and vars(type(config))["__dataclass_params__"].frozen
    check(frozen, "config must be a frozen dataclass", type(config))
    back = build(type(config), json.loads(json.dumps(dataclasses.asdict(config))), what="config")
    check(back == config, "config must survive JSON", back)
