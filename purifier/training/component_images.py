"""The images that a certified purifier's components become: typical of a class, and answered with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..data.images import ImageData
from ..errors import TrainingError

PART = 250
"""Images read at a time."""


@torch.no_grad()
def component_images(
    data: ImageData, classifier: PixelClassifier, classes: int, device: torch.device, *, answers: bool
) -> Tensor:
    """An image for each class, (classes, C, H, W), that the classifier answers with the class.

    It is the mean of the class's images, or where the classifier answers that with another class, the image closest to
    the mean that it answers rightly.

    Parameters
    ----------
    answers
        An image's class is the classifier's answer, instead of its label.

    Raises
    ------
    TrainingError
        A class has no image, or none that the classifier answers with it; or there are more classes.
    """
    sums = torch.zeros(classes, *data.shape, dtype=torch.float64, device=device)
    counts = torch.zeros(classes, dtype=torch.int64, device=device)
    for pixels, labels, _ in _parts(data, classifier, device, asks=answers, answers=answers):
        if labels.max() >= classes or labels.min() < 0:
            raise TrainingError(
                f"expected classes from 0 to {classes - 1}, got {int(labels.max())}; give the purifier as many classes "
                "as the classifier has (--set classes=...)"
            )
        sums.index_add_(0, labels, pixels.double())
        counts += labels.bincount(minlength=classes)
    if not counts.all():
        empty = int((counts == 0).nonzero()[0, 0])
        raise TrainingError(f"no image of class {empty} among {len(data)}; give images of all {classes} classes")
    means = (sums / counts.view(-1, 1, 1, 1)).float().clamp(0, 1)
    wrong = (classifier(means).argmax(1) != torch.arange(classes, device=device)).nonzero()[:, 0].tolist()
    if wrong:
        _replace(means, wrong, data, classifier, device, answers=answers)
    return means


def _replace(
    means: Tensor,
    wrong: Sequence[int],
    data: ImageData,
    classifier: PixelClassifier,
    device: torch.device,
    *,
    answers: bool,
) -> None:
    """Put the closest images that are answered rightly where the classifier answers the means wrongly."""
    best, found = dict.fromkeys(wrong, float("inf")), dict[int, Tensor]()
    for pixels, labels, answered in _parts(data, classifier, device, asks=True, answers=answers):
        for place in wrong:
            fitting = pixels[(labels == place) & (answered == place)]
            if not len(fitting):
                continue
            distances = (fitting - means[place]).square().flatten(1).sum(1)
            nearest = int(distances.argmin())
            if distances[nearest] < best[place]:
                best[place], found[place] = float(distances[nearest]), fitting[nearest]
    for place in wrong:
        if place not in found:
            raise TrainingError(
                f"the classifier answers no image of class {place} with that class, so no component can stand for it; "
                "check that the labels are the classifier's classes (--classes), or use certified:answers=true"
            )
        means[place] = found[place]


def _parts(
    data: ImageData, classifier: PixelClassifier, device: torch.device, *, asks: bool, answers: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels, classes and the classifier's answers (only if ``asks``; else the classes) of all images, in parts."""
    indices = range(len(data))
    parts = [indices[start : start + PART] for start in range(0, len(data), PART)]
    for pixels, labels in data.batches(parts):
        pixels, labels = pixels.to(device), labels.to(device)
        answered = classifier(pixels).argmax(1) if asks else labels
        yield pixels, answered if answers else labels, answered
