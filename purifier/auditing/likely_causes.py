"""Likely mistakes in how a classifier was set up: if fixing one makes it better, the audit measured the mistake."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..data.images import ImageData
from ..data.pixels import Preprocessing
from ..foreign_code import Attempt
from ..torch_tools.copying import unused_copy
from .comparing import by_chance, significant_drop
from .report import Flag
from .setup import AuditSetup

SAMPLE = 256
"""How many images are tried, spread over the data."""
MOST_CLASSES = 20
"""With more classes their order is shown in part."""
# Means and standard deviations in common use, for pixels in [0, 1].
HALF = ((0.5,), (0.5,))
COLOURS = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's (deviations 0.2023, 0.1994, 0.2010)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
GREYS = {"MNIST's": ((0.1307,), (0.3081,)), "Fashion-MNIST's": ((0.2860,), (0.3530,))}


def flags_of_set_up(setup: AuditSetup, data: ImageData) -> Iterator[Flag]:
    """Try other preprocessings and orders of the labels; the flag names the one that helps most."""
    classifier = setup.classifier
    outcome = _predictions(classifier, classifier.preprocessing, setup, data)
    if outcome is None:
        return
    predicted, labels = outcome
    found: list[tuple[float, str]] = []
    for cause, other, fix in _shifted(predicted):
        _compare(found, cause, predicted, other, labels, fix)
    half = torch.arange(len(labels)) % 2 == 0
    fitted = _one_to_one(predicted[half], labels[half], 1 + int(torch.cat([predicted, labels]).max()))
    rest = predicted[~half]
    _compare(found, "its classes have another order", rest, fitted[rest], labels[~half], _renumbering(fitted, labels))
    for cause, preprocessing in _others(classifier.preprocessing, data):
        tried = _predictions(classifier, preprocessing, setup, data)
        if tried is not None:
            _compare(found, cause, predicted, tried[0], labels, _typed(preprocessing))
    if found:
        _, said = max(found)
        yield Flag("set-up", said)


def _compare(
    found: list[tuple[float, str]], cause: str, predicted: Tensor, other: Tensor, labels: Tensor, fix: str
) -> None:
    """Add a cause if without it, with ``other`` predictions, more images are right: beyond chance and by more than 1%.

    That must also be more than by answers that have nothing to do with the images. All tensors are (N,). ``fix`` says
    what to type.
    """
    now, then = (predicted == labels).double(), (other == labels).double()
    if significant_drop(then, now) is not None and then.mean() > by_chance(labels)[1]:
        gain = (then.mean() - now.mean()).item()
        said = f"{now.mean():.1%} of {len(now)} images are right as it is, {then.mean():.1%} with this fixed"
        found.append((gain, f"{cause}: {said}; {fix}"))


@torch.no_grad()
def _predictions(
    classifier: PixelClassifier, preprocessing: Preprocessing, setup: AuditSetup, data: ImageData
) -> tuple[Tensor, Tensor] | None:
    """Predicted and true labels, (N,) each, of a copy with this preprocessing; None if it fails."""
    tried = copy.copy(unused_copy(classifier))  # a classifier that cannot be copied keeps its own preprocessing
    tried.preprocessing = preprocessing
    predicted, labels, positions = [], [], data.spread(SAMPLE)
    with Attempt() as attempt:
        for start in range(0, len(positions), setup.batch_size):
            batch = setup.batch(data, positions[start : start + setup.batch_size])
            predicted.append(tried(batch.pixels).argmax(1).cpu())
            labels.append(batch.labels.cpu())
    return None if attempt.error is not None else (torch.cat(predicted), torch.cat(labels))


def _shifted(predicted: Tensor) -> Iterator[tuple[str, Tensor, str]]:
    """What the predictions would be if classes and labels did not start at the same number, and what to type."""
    for shift, cause, change in (
        (1, "the labels are one lower than its classes", "+ 1"),
        (-1, "the labels are one higher than its classes", "- 1"),
    ):
        fix = f"in Python data.labels = data.labels {change}; for npz:FILE, change the array labels in the file"
        yield cause, predicted - shift, fix


def _renumbering(label_of: Tensor, labels: Tensor) -> str:
    """What to type so that the labels (N,) are the numbers of the classes; ``label_of`` is each class's label."""
    class_of = {label: number for number, label in enumerate(label_of.tolist()) if label >= 0}
    order = [class_of.get(label, -1) for label in range(int(labels.max()) + 1)]
    if len(order) <= MOST_CLASSES and -1 not in order:
        code = f"in Python data.labels = torch.tensor({order})[data.labels]"
        return f"{code}; folder:DIR numbers its folders by name, so rename them"
    pairs = [f"{label}: {class_of[label]}" for label in sorted(set(labels.tolist())) if label in class_of]
    listed = ", ".join(pairs[:MOST_CLASSES]) + (", ..." if len(pairs) > MOST_CLASSES else "")
    return f"renumber the labels of the data, label: class as in {listed}"


def _typed(preprocessing: Preprocessing) -> str:
    """What to type for this preprocessing, on the command line and in Python."""
    fields = dataclasses.fields(preprocessing)
    values = {field.name: getattr(preprocessing, field.name) for field in fields}
    changed = {field.name: values[field.name] for field in fields if values[field.name] != field.default}
    texts = {name: _numbers(value) for name, value in (changed or {"scale": 1.0}).items()}
    option = ",".join(f"{name}={' '.join(numbers)}" for name, numbers in texts.items())
    arguments = []
    for name, numbers in texts.items():
        if isinstance(values[name], tuple):
            arguments.append(f"{name}=({', '.join(numbers)}{',' * (len(numbers) == 1)})")
        else:
            arguments.append(f"{name}={numbers[0]}" if isinstance(values[name], float) else f"{name}={values[name]!r}")
    return f'use --preprocessing "{option}", in Python preprocessing=purifier.Preprocessing({", ".join(arguments)})'


def _numbers(value: object) -> list[str]:
    """A value, or the values of a tuple, as they are typed."""
    parts = value if isinstance(value, tuple) else (value,)
    return [f"{one:g}" if isinstance(one, float) else str(one) for one in parts]


def _one_to_one(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """A label for each class, (classes,), none used twice; -1 for a class that is left without one.

    The pairs of a predicted class and a label that occur most often come first.
    """
    pairs, counts = torch.unique(predicted * classes + labels, return_counts=True)
    free_classes, free_labels = set(range(classes)), set(range(classes))
    label_of = torch.full((classes,), -1)
    often = [divmod(pair, classes) for pair in pairs[counts.argsort(descending=True, stable=True)].tolist()]
    for one, label in [*often, *((one, one) for one in range(classes))]:
        if one in free_classes and label in free_labels:
            label_of[one] = label
            free_classes.remove(one)
            free_labels.remove(label)
    return label_of


def _others(preprocessing: Preprocessing, data: ImageData) -> Iterator[tuple[str, Preprocessing]]:
    """Other preprocessings in common use for images like these, and what would then be wrong about this one."""
    colour = data.batch([0])[0].shape[1] == 3
    if colour:
        channels: Literal["RGB", "BGR"] = "RGB" if preprocessing.channels == "BGR" else "BGR"
        swapped = dataclasses.replace(
            preprocessing, channels=channels, mean=preprocessing.mean[::-1], std=preprocessing.std[::-1]
        )
        yield f"the classifier wants {channels} images, not {preprocessing.channels}", swapped
    if preprocessing.dtype == "uint8":
        return
    scale = 1.0 if preprocessing.scale == 255 else 255.0
    other = dataclasses.replace(preprocessing, scale=scale)
    yield f"the classifier wants images from 0 to {scale:g}, not {preprocessing.scale:g}", other
    known: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {"no": ((), ()), "0.5 and 0.5 as": HALF}
    for name, (mean, std) in {**known, **(COLOURS if colour else GREYS)}.items():
        scaled = [tuple(preprocessing.scale * value for value in values) for values in (mean, std)]
        if (scaled[0], scaled[1]) != (preprocessing.mean, preprocessing.std):
            other = dataclasses.replace(preprocessing, mean=scaled[0], std=scaled[1])
            yield f"the classifier wants {name} mean and std", other
