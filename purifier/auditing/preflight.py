"""Checks before any attack that data, purifier and classifier fit together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..answering import answer, draw
from ..attacking.target import is_random
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import LatentSpace, Purifier, image_shape_of
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..errors import AuditError
from ..foreign_code import explained
from ..seeding import SampleGenerator
from ..torch_tools.channels_last import Ask


@torch.no_grad()
def check_fit(
    classifier: PixelClassifier, purifier: Purifier, data: ImageData, device: torch.device, *, abstains: bool = False
) -> bool:
    """Check on two images that data, purifier and classifier fit together; return whether the purifier is random.

    A classifier that ``abstains`` may return NaN.
    """
    indices = range(min(2, len(data)))
    pixels = data.batch(indices)[0].to(device)
    check_pixels(pixels, name=data.name, shape=image_shape_of(purifier))
    given, who = pixels.clone(), f"{type(purifier).__name__} and {classifier.describe()}"
    failure = f"{who} fail on images {tuple(pixels.shape)} of {data.name}"
    with explained(failure, AuditError, "check that they take this size and preprocessing, in float32"):
        noise = draw(purifier, given, SampleGenerator(0, indices))
        logits, purified, _, _ = answer(purifier, classifier, given, noise, scored=True)
    low, high = purified.aminmax()
    if low < 0 or high > 1:
        raise AuditError(
            f"{type(purifier).__name__}: expected purified pixels in [0, 1], got [{low:.3g}, {high:.3g}]; "
            "clamp them with purifier.into_range, which keeps the gradient"
        )
    if not torch.equal(given, pixels):
        raise AuditError(
            f"{type(purifier).__name__} changed its input in place; make it work on a copy, and run "
            "purifier.testing.check_purifier"
        )
    if logits.isnan().any() and not abstains:
        raise AuditError(f"{who} return NaN for an image of {data.name}; check their weights")
    highest = int(data.labels.max())
    if highest >= logits.shape[1]:
        raise AuditError(
            f"{data.name} has labels up to {highest}, but {classifier.describe()} has {logits.shape[1]} logits; "
            "use the data it was trained on"
        )
    return is_random(purifier, pixels)


def everything_asked(purifier: Purifier) -> Ask:
    """A function that calls the purifier in every way that attacks do."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = purifier.draw(pixels, SampleGenerator(0, range(len(pixels))))
        found = [*purifier.purify_and_score(pixels, noise), purifier.purify(pixels, noise)]
        if type(purifier).surrogate is not Purifier.surrogate:
            found.append(purifier.surrogate(pixels, noise))
        if isinstance(purifier, LatentSpace):
            found.append(purifier.decoded(purifier.latent_of(pixels)))
        return found

    return ask
