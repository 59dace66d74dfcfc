"""The images that a certified purifier's components become: typical of a class, and clearly answered with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..data.images import ImageData
from ..errors import TrainingError

PART = 250
"""Images read at a time."""
SUREST = 0.25
"""The share of a class's images among which a typical one is looked for, those that the classifier is surest of. Their
mean itself is blurred, so that other classifiers may answer it wrongly."""
MOST = 1000
"""No more images of a class are looked at."""


@torch.no_grad()
def component_images(
    data: ImageData, classifier: PixelClassifier, classes: int, device: torch.device, *, answers: bool
) -> Tensor:
    """An image of ``data`` for each class, (classes, C, H, W), that the classifier answers with the class.

    Of a class's images, it is the one closest to the mean of those that the classifier is surest of.

    Parameters
    ----------
    answers
        An image's class is the classifier's answer, instead of its label.

    Raises
    ------
    TrainingError
        There are more classes, or there is none of a class that the classifier answers with it.
    """
    margins, labels = _margins(data, classifier, device, answers=answers)
    if labels.max() >= classes:
        raise TrainingError(
            f"expected classes from 0 to {classes - 1}, got {int(labels.max())}; the purifier needs as many classes as "
            "the classifier has"
        )
    found = []
    for label in range(classes):
        right = ((labels == label) & (margins > 0)).nonzero()[:, 0]
        if not len(right):
            raise TrainingError(
                f"the classifier answers no image of class {label} with that class, of {int((labels == label).sum())} "
                f"among {len(data)}, so no image can stand for it; give images of all {classes} classes, check that "
                f"the labels are the classifier's (--classes){'' if answers else ', or use certified:answers=true'}"
            )
        count = min(MOST, math.ceil(SUREST * len(right)))
        found.append(_typical(data, right[margins[right].argsort(descending=True)[:count]].tolist()))
    return torch.stack(found).to(device)


def _margins(
    data: ImageData, classifier: PixelClassifier, device: torch.device, *, answers: bool
) -> tuple[Tensor, Tensor]:
    """Of each image the logit of its class minus the largest other one, and its class; both (N,), on the CPU."""
    margins, classes = [], []
    for pixels, labels in data.batches(_parts(range(len(data)))):
        logits = classifier(pixels.to(device)).float().cpu()
        own = logits.argmax(1) if answers else labels
        known = own.clamp(0, logits.shape[1] - 1)[:, None]  # others than its classes are errors later
        classes.append(own)
        margins.append((logits.gather(1, known) - logits.scatter(1, known, -math.inf).amax(1, keepdim=True))[:, 0])
    return torch.cat(margins), torch.cat(classes)


def _typical(data: ImageData, indices: list[int]) -> Tensor:
    """Of the images at these positions, the one closest to their mean."""
    total = torch.stack([pixels.double().sum(0) for pixels, _ in data.batches(_parts(indices))]).sum(0)
    mean, best, nearest = (total / len(indices)).float(), math.inf, total
    for pixels, _ in data.batches(_parts(indices)):
        distances = (pixels - mean).square().flatten(1).sum(1)
        if distances.min() < best:
            best, nearest = float(distances.min()), pixels[distances.argmin()]
    return nearest


def _parts(indices: range | list[int]) -> list[range | list[int]]:
    return [indices[start : start + PART] for start in range(0, len(indices), PART)]
