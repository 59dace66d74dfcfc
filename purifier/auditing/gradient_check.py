"""Whether a gradient that is declared exact is the derivative of what the guard computes: finite differences."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..answering import answer, draw
from ..attacking.threat import Threat
from ..data.pixels import plain_range
from ..foreign_code import Attempt
from ..seeding import SampleGenerator, mix_seed
from ..torch_tools.norms import norm_of, scale_like
from .probing import fresh, led, moved
from .report import Flag
from .setup import AuditSetup, Batch

PRECISIONS = {torch.float64: ((1e-6, 1e-4, 1e-3), 0.1), torch.float32: ((1e-3, 3e-3), 0.5)}
"""Step lengths in pixel units, of which the best counts, and the largest error allowed, for each precision.

In float64 nearly all images of healthy guards stay below 0.01, and wrong gradients are off by 0.5 and more. In float32,
for models that do not run in double, ReLUs and rounding put up to half of the images of a healthy guard above 0.3. A
step of 0.001 is a quarter of a level of 8 bits, so a function of rounded pixels is seen as a staircase, not a slope.
"""
LEAST_COSINE = 0.9
"""The smallest cosine between an image's gradients in the two precisions.

Healthy networks of up to 12 layers, behind every built-in purifier, max pooling or a median filter, stay above 0.98 on
all images.
"""
OTHER_PRECISION = {"cpu": 1e-3}
"""The largest difference of answers in the two precisions, relative to the logits; elsewhere 1e-2, because of TF32.

On the CPU they differ by up to 4e-6.
"""
DIRECTIONS, FACTOR_STEP, LARGEST_FACTOR = 4, 3e-3, 1.5
"""In float32 the slopes of all images along this many random directions, over this step, are also compared at once.

Kinks and rounding are then averaged. The differences of healthy guards are 0.77 to 1.2 times what the gradient says;
where a factor of the function is detached, they are twice as large.
"""
TOO_MANY, TOO_MANY_SINGLE = 0.25, 0.5
"""The largest share of images whose gradient may be wrong, in float64 and in float32.

A function with ties, such as a median filter, has no derivative at some images; wrong gradients are wrong at half of
them and more.
"""
ROUNDINGS = 64
"""How many rounding errors of the logits' size a difference of two of them is allowed."""
LOW_PRECISION_ROUNDINGS = 8
"""The same for a classifier that computes in 16 bits, compared with itself in float64."""

Precision = Literal["float64", "float32"]
Function = Callable[[Tensor], Tensor]
"""Pixels (N, C, H, W) -> a weighted sum of each image's logits, (N,)."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where gradients are compared."""

    pixels: Tensor
    """(N, C, H, W)."""
    margin: bool
    """Whether the margin between the two leading classes is differentiated, or a random sum of logits.

    A backward pass can tell one from the other. The margin is what the self-checks' own attack differentiates.
    """

    def to(self, dtype: torch.dtype) -> _Place:
        return dataclasses.replace(self, pixels=self.pixels.to(dtype))


def flags_of_gradient(
    setup: AuditSetup, batch: Batch, threats: Sequence[Threat], precisions: list[Precision]
) -> Iterator[Flag]:
    """Compare the gradient along ``exact`` with finite differences, next to clean images and at random places.

    With a surrogate purifier the classifier alone is checked. The purifier's noise is held fixed. Attacks start at
    such random places, where half of the black pixels are still black: directions point into the box, because a
    function that ends in a clamp has a slope there only towards the inside. The precision that the models run in is
    added to ``precisions``.
    """
    setup = setup if setup.purifier.gradient == "exact" else setup.alone
    widest = max(threats, key=lambda threat: threat.eps)
    places = [_Place(_next_to(setup, batch), margin=False)]
    if widest.eps:
        places.append(_Place(moved(setup, batch, widest, "slopes"), margin=True))
    marks: list[Tensor] = []
    factor = None
    for dtype, (steps, tolerance) in PRECISIONS.items():
        with Attempt() as attempt, plain_range():
            marks = [_wrong(setup, batch, place.to(dtype), steps, tolerance) for place in places]
            factor = _wrong_factor(setup, batch, places) if dtype == torch.float32 else None
        if attempt.error is None:
            precisions.append(_name(dtype))
            break
        if dtype == torch.float32:
            raise attempt.error
    wrong, total = int(torch.cat(marks).sum()), sum(map(len, marks))
    if wrong > total * (TOO_MANY if dtype == torch.float64 else TOO_MANY_SINGLE):
        near = int(marks[0].sum())
        yield Flag(
            "gradient-wrong",
            f"the gradient of {wrong} of {total} images ({near} next to clean ones, {wrong - near} at random places) "
            f"differs from finite differences by more than {tolerance:.0%} (exact, {_name(dtype)})",
        )
    elif factor is not None:
        yield Flag(
            "gradient-wrong",
            f"finite differences along random directions are {factor:.2f} times what the gradient says, over all "
            f"{total} images (exact, {_name(dtype)})",
        )


def _name(dtype: torch.dtype) -> Precision:
    return "float64" if dtype == torch.float64 else "float32"


def _next_to(setup: AuditSetup, batch: Batch) -> Tensor:
    """The clean images, each pixel moved inwards by less than a level of 8 bits, (N, C, H, W).

    In areas of one colour the inputs of a max pooling are equal, and those of a ReLU without bias are 0: there a
    healthy network has a slope for each direction, and no gradient that agrees with all.
    """
    generator = SampleGenerator(mix_seed(setup.seed, "probe", "next"), batch.indices)
    inwards = 1 - 2 * (batch.pixels > 0.5).to(batch.pixels)
    return batch.pixels + inwards * generator.uniform(batch.pixels.shape[1:], batch.pixels) / 255


def _wrong(setup: AuditSetup, batch: Batch, place: _Place, steps: Sequence[float], tolerance: float) -> Tensor:
    """Which images' gradients disagree with all finite differences along some direction, bool (N,)."""
    pixels = place.pixels
    function, magnitude, precision = _function(setup, batch, place)
    generator = SampleGenerator(mix_seed(setup.seed, "probe", "directions"), batch.indices)
    leaf = pixels.clone().requires_grad_()
    with torch.enable_grad():
        values = function(leaf)
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    if gradient is None:
        return torch.zeros(len(pixels), dtype=torch.bool)  # cut off: another flag
    # Gradients that are zero everywhere, or not finite, are other flags too.
    usable = gradient.flatten(1).isfinite().all(1) & gradient.flatten(1).any(1) & values.isfinite()
    wrong, length = torch.zeros_like(usable), norm_of(gradient, "l2")
    for direction in _directions(pixels, gradient, generator, margin=max(steps)):
        slope = (gradient * direction).flatten(1).sum(1)
        agrees = ~usable
        for step in steps:
            if agrees.all():
                break
            with torch.no_grad():
                difference = (function(pixels + step * direction) - values) / step
            rounding = ROUNDINGS * precision * magnitude(values) / step
            error = (difference - slope).abs() - rounding
            agrees = agrees | (error <= tolerance * torch.maximum(length, difference.abs()))
        wrong = wrong | ~agrees
    if pixels.dtype == torch.float64:
        notable = usable & _exceeds_rounding(gradient, magnitude(values))
        wrong = wrong | (notable & ~_same_in_float32(gradient, values, magnitude(values), setup, batch, place))
    return wrong.cpu()


def _exceeds_rounding(gradient: Tensor, size: Tensor) -> Tensor:
    """Whether a step along the gradient changes logits of this ``size`` by more than float32 rounds, bool (N,)."""
    return FACTOR_STEP * norm_of(gradient, "l1") > ROUNDINGS * torch.finfo(torch.float32).eps * size


def _same_in_float32(
    gradient: Tensor, values: Tensor, size: Tensor, setup: AuditSetup, batch: Batch, place: _Place
) -> Tensor:
    """Whether the guard in float32, which attacks see, is the one whose gradient was checked in float64, bool (N,)."""
    single_place = place.to(torch.float32)
    leaf = single_place.pixels.clone().requires_grad_()
    function, _, precision = _function(setup, batch, single_place)
    with torch.enable_grad():
        found = function(leaf)
    (single,) = torch.autograd.grad(found.sum(), leaf)
    cosine = torch.nn.functional.cosine_similarity(single.flatten(1).double(), gradient.flatten(1), dim=1)
    largest = max(OTHER_PRECISION.get(leaf.device.type, 1e-2), LOW_PRECISION_ROUNDINGS * precision)
    near: Tensor = (found.detach() - values.detach()).abs() <= largest * size
    return near & (cosine > LEAST_COSINE)


def _wrong_factor(setup: AuditSetup, batch: Batch, places: Sequence[_Place]) -> float | None:
    """The factor by which the slopes of all images differ from the gradient's; None if it is near 1, or unknown.

    It is that of a regression through the origin, and more than two standard errors beyond ``LARGEST_FACTOR``.
    """
    said, measured = [], []
    for number, place in enumerate(places):
        pixels = place.pixels
        function, magnitude, _ = _function(setup, batch, place)
        generator = SampleGenerator(mix_seed(setup.seed, "probe", "factor", number), batch.indices)
        leaf = pixels.clone().requires_grad_()
        with torch.enable_grad():
            values = function(leaf)
        if not values.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        length = norm_of(gradient, "l2").where(_exceeds_rounding(gradient, magnitude(values)), torch.nan)
        for _ in range(DIRECTIONS):
            direction = next(_directions(pixels, gradient, generator, margin=FACTOR_STEP))
            with torch.no_grad():
                difference = (function(pixels + FACTOR_STEP * direction) - values) / FACTOR_STEP
            said.append((gradient * direction).flatten(1).sum(1) / length)
            measured.append(difference / length)
    slopes, differences = (torch.cat(found).detach().double() for found in (said, measured))
    usable = slopes.isfinite() & differences.isfinite()
    slopes, differences = slopes[usable], differences[usable]
    square = slopes.square().sum().item()
    if len(slopes) < 2 or not square:
        return None
    factor = (slopes * differences).sum().item() / square
    error = ((differences - factor * slopes).square().sum().item() / square / (len(slopes) - 1)) ** 0.5
    return factor if abs(factor - 1) > LARGEST_FACTOR - 1 + 2 * error else None


def _directions(pixels: Tensor, gradient: Tensor, generator: SampleGenerator, *, margin: float) -> Iterator[Tensor]:
    """Random signs, and the gradient's own direction, each at most 1 per pixel and never out of the box."""
    inwards = (pixels <= margin).to(pixels) - (pixels >= 1 - margin).to(pixels)
    signs = 2 * (generator.uniform(pixels.shape[1:], pixels) > 0.5).to(pixels) - 1
    yield torch.where(inwards != 0, inwards, signs)
    largest = norm_of(gradient, "linf").clamp_min(torch.finfo(gradient.dtype).tiny)
    along = gradient / scale_like(largest, gradient)
    yield along.masked_fill(along * inwards < 0, 0)


def _function(setup: AuditSetup, batch: Batch, place: _Place) -> tuple[Function, Callable[[Tensor], Tensor], float]:
    """The guard in the place's dtype, with fixed noise; how large its logits are, (N,); and their rounding.

    Only the leading logits count, and the score if the guard rejects images. The noise is drawn again for each image
    that is asked about: what ``draw`` makes of the image is a part of the function.
    """
    dtype = place.pixels.dtype
    classifier, purifier = fresh(setup)

    def drawn(images: Tensor) -> Tensor | None:
        streams = SampleGenerator(mix_seed(setup.seed, "probe", "noise"), batch.indices)
        noise = draw(purifier, images, streams)
        return noise.to(dtype) if noise is not None and noise.is_floating_point() else noise

    scored = setup.rejection.active
    with torch.no_grad():
        logits, _, score, _ = answer(purifier, classifier, batch.pixels, drawn(batch.pixels), scored=scored)
    precision = max(torch.finfo(dtype).eps, torch.finfo(logits.dtype).eps if logits.dtype.itemsize < 4 else 0)
    logits, leading = led(logits.float())
    logits = torch.where(logits.isfinite(), logits, 0)
    weights = SampleGenerator(mix_seed(setup.seed, "probe", "weights"), batch.indices).normal(logits.shape[1:], logits)
    if place.margin:
        weights = torch.zeros_like(weights)
        weights[:, 0], weights[:, 1] = 1, -1
    size = (logits.abs() * weights.abs()).sum(1)
    share = 0.0 if score is None else size / score.abs().float().clamp_min(torch.finfo(torch.float32).tiny)
    if dtype == torch.float64:
        # Deep copies, because double() replaces weights in place.
        classifier, purifier = copy.deepcopy(classifier).double(), copy.deepcopy(purifier).double()
        classifier.preprocessing = dataclasses.replace(classifier.preprocessing, dtype="float64")

    def function(images: Tensor) -> Tensor:
        found, _, scores, _ = answer(purifier, classifier, images, drawn(images), scored=scored)
        found = found.gather(1, leading)
        total = (torch.where(found.isfinite(), found, 0) * weights.to(found)).sum(1).to(dtype)
        return total if scores is None else total + share * scores.to(dtype)

    return function, lambda values: torch.maximum(values.detach().abs(), size.to(values)), precision
