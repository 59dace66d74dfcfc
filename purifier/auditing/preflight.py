"""Checks before any attack that data, purifier and classifier fit together, and keep their contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..answering import draw, purifier_input
from ..attacking.target import is_random
from ..classifiers.channels import channels_advice
from ..classifiers.pixel_classifier import OnnxPixelClassifier, PixelClassifier
from ..contracts.purifier import LatentSpace, Purifier, check_scores, image_shape_of
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..errors import AuditError, about
from ..foreign_code import explained
from ..guards.precision import dtype_advice
from ..seeding import SampleGenerator
from ..torch_tools.channels_last import Ask
from ..torch_tools.process_settings import DECISIVE

FIRST_IMAGES = 2
"""How many images are tried, together and one alone."""


def check_fit(classifier: PixelClassifier, purifier: Purifier, data: ImageData, device: torch.device) -> bool:
    """Check on two images that data, purifier and classifier fit together; return whether the purifier is random.

    Purifier and classifier run apart, on two images and on one, with gradients too where attacks use them.

    Raises
    ------
    PurifierError
        One of them fails or breaks its contract; the message names it, and the line of its author's code.
    """
    pixels = data.batch(range(min(FIRST_IMAGES, len(data))))[0].to(device)
    check_pixels(pixels, name=data.name, shape=image_shape_of(purifier))
    own = purifier_input(pixels, purifier)
    for images in (own[:1], own):
        purified = _check_purifier(purifier, images, data.name, classifier.differentiable)
        classes = _check_classifier(classifier, purified, data.name)
    highest = int(data.labels.max())
    if highest >= classes:
        raise AuditError(
            f"{data.name}: expected labels from 0 to {classes - 1}, because {classifier.describe()} has {classes} "
            f"classes, got {int(data.labels.min())} to {highest}; number them from 0, or use the data it was trained on"
        )
    return is_random(purifier, pixels)


def _check_purifier(purifier: Purifier, pixels: Tensor, data: str, differentiable: bool) -> Tensor:
    """Run a purifier in every way that an audit does; return the purified pixels."""
    name = type(purifier).__name__
    with explained(f"{name}.draw fails on images {tuple(pixels.shape)} of {data}", AuditError):
        noise = draw(purifier, pixels, SampleGenerator(0, range(len(pixels))))
    if noise is not None and not isinstance(noise, Tensor):
        raise AuditError(f"{name}.draw must return noise as a tensor, or None, got {type(noise).__name__}")
    purified = pixels
    for method, run in _ways(purifier):
        held = None if noise is None else noise.clone()

        def ask(images: Tensor, run: Way = run, held: Tensor | None = held) -> Sequence[Tensor]:
            return run(images, held)

        track = differentiable and (purifier.gradient == "exact" if method == "purify" else method == "surrogate")
        found = _run(f"{name}.{method}", ask, pixels, data, track=track)
        if held is not None and noise is not None and not torch.equal(held, noise):
            raise AuditError(f"{name}.{method} changed its noise in place; make it work on a copy (clone)")
        if method == "purify_and_score" and not (isinstance(found, tuple | list) and len(found) == 2):
            raise AuditError(f"{name}.{method} must return images and scores, got {type(found).__name__}")
        if method != "score":
            _check_image(f"{name}.{method}", found[0], pixels, data, method != "surrogate")
        if method in ("score", "purify_and_score"):
            if not isinstance(found[-1], Tensor):
                raise AuditError(f"{name}.{method} must return scores ({len(pixels)},), got {type(found[-1]).__name__}")
            check_scores(purifier, found[-1], pixels)
        if method == "purify":
            purified = found[0].detach()
    return purified


def _check_classifier(classifier: PixelClassifier, pixels: Tensor, data: str) -> int:
    """Run a classifier; return how many classes it has."""
    name = classifier.describe()
    if isinstance(classifier, OnnxPixelClassifier):
        _check_size(classifier, pixels, data)
    advice = "check that it takes this size and preprocessing, in float32, in batches of any size"
    if classifier.differentiable:
        advice += ", and that it computes with torch tensors all the way (no .numpy(), .detach() or .item())"
    advice += dtype_advice(classifier, classifier.preprocessing.dtype)
    with about(classifier.file):
        (logits,) = _run(
            name,
            lambda images: [classifier(images)],
            pixels,
            data,
            track=classifier.differentiable,
            advice=lambda: channels_advice(classifier, pixels) or advice,
        )
    abstains = isinstance(classifier, OnnxPixelClassifier) and classifier.marks
    if logits.isnan().any() and not abstains:
        raise AuditError(f"{name} returns NaN for an image of {data}; check its weights")
    return logits.shape[1]


def _check_size(classifier: OnnxPixelClassifier, pixels: Tensor, data: str) -> None:
    """Raise unless the images are of the size that an ONNX model declares."""
    got, declared = classifier.preprocessing.to_classifier(pixels).shape[1:], classifier.shape[1:]
    if any(isinstance(size, int) and size != other for size, other in zip(declared, got, strict=False)):
        wanted = ", ".join("any" if size is None else str(size) for size in declared)
        raise AuditError(
            f"{classifier.describe()} takes images ({wanted}), got {tuple(got)} from {data}; give the data that it is "
            "for, or resize it with resize= in load_data (--resize)"
        )


def _run(
    name: str, ask: Ask, pixels: Tensor, data: str, *, track: bool, advice: str | Callable[[], str] = "fix it"
) -> Sequence[Tensor]:
    """The answers of ``ask``, without gradients; if ``track``, it has to run with gradients as well."""
    found: Sequence[Tensor] = ()
    for tracking in (True, False) if track else (False,):
        shown = pixels.clone()
        with torch.set_grad_enabled(tracking):
            if tracking:
                leaf = pixels.clone().requires_grad_()
                shown = leaf.clone()  # an operation in place on a leaf is an error of torch's
            failure = f"{name} fails on images {tuple(pixels.shape)} of {data}" + " with gradients" * tracking
            settings = {what: read() for what, read in DECISIVE.items()}
            with explained(failure, AuditError, advice):
                found = ask(shown)
                changed = [what for what, read in DECISIVE.items() if read() != settings[what]]
                if changed:
                    raise AuditError(
                        f"{name} changed {changed[0]} for the whole process; make it set that for its own tensors only"
                    )
                if tracking and isinstance(found[0], Tensor) and found[0].requires_grad:
                    torch.autograd.grad(found[0].sum(), leaf, allow_unused=True)
        if not torch.equal(shown, pixels):
            raise AuditError(
                f"{name} changed its input in place; make it work on a copy (clone, inplace=False), because "
                "attacks need their images unchanged"
            )
    return found


def _check_image(name: str, image: object, pixels: Tensor, data: str, in_range: bool) -> None:
    """Check what ``name`` returned for ``pixels``; only a surrogate's values may lie anywhere."""
    if not isinstance(image, Tensor) or image.shape != pixels.shape:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise AuditError(f"{name} must return images {tuple(pixels.shape)}, got {got}")
    if (image.dtype, image.device) != (pixels.dtype, pixels.device):
        raise AuditError(
            f"{name} must keep dtype and device: expected {pixels.dtype} on {pixels.device}, got {image.dtype} on "
            f"{image.device}; convert the result with .to(pixels)"
        )
    low, high = image.aminmax()
    if low.isnan():
        raise AuditError(f"{name} returns NaN for an image of {data}; check its weights")
    if in_range and (low < 0 or high > 1):
        raise AuditError(
            f"{name}: expected purified pixels in [0, 1], got [{low:.3g}, {high:.3g}]; clamp them with "
            "purifier.into_range, which keeps the gradient"
        )


Way = Callable[[Tensor, Tensor | None], Sequence[Tensor]]
"""Pixels (N, C, H, W) and noise -> what one method of a purifier returns."""


def _ways(purifier: Purifier) -> Iterator[tuple[str, Way]]:
    """The name of each method of a purifier that an audit calls, and the method."""
    yield "purify", lambda pixels, noise: [purifier.purify(pixels, noise)]
    yield "score", lambda pixels, noise: [purifier.score(pixels)]
    yield "purify_and_score", purifier.purify_and_score
    if type(purifier).surrogate is not Purifier.surrogate:
        yield "surrogate", lambda pixels, noise: [purifier.surrogate(pixels, noise)]
    if isinstance(purifier, LatentSpace) and not purifier.no_latent_space:
        space = purifier
        yield "decoded", lambda pixels, noise: [space.decoded(space.latent_of(pixels))]


def everything_asked(purifier: Purifier) -> Ask:
    """A function that calls the purifier in every way that attacks do."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = purifier.draw(pixels, SampleGenerator(0, range(len(pixels))))
        return [answer for _, run in _ways(purifier) for answer in run(pixels, noise)]

    return ask
