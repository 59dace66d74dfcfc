"""Image strips of a page: an example clean, adversarial, their difference and purified, as PNG in ``data:`` URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..auditing.arrays import Array
from ..auditing.examples import Examples
from ..auditing.report import AuditReport
from ..pictures import GAIN, difference

LARGEST = 160
"""Longer sides are shrunk to this many pixels, so that a page stays small."""


@dataclass(frozen=True)
class Strip:
    """One example, ready to be shown."""

    fell: bool
    threat: str
    attack: str
    index: int
    true_class: str
    before: str
    """The answer to the clean image, with its confidence."""
    after: str
    rejected: bool
    images: Sequence[tuple[str, str]]
    """What each image is, and its ``data:`` URI."""


def strips_of(report: AuditReport, names: Sequence[str] | None) -> list[Strip]:
    """The examples that a report kept, those that fell first; none if it kept none."""
    found = report.examples
    if found is None:
        return []
    order = sorted(range(len(found.rows)), key=lambda at: (not found.fell[at], found.rows[at], found.indices[at]))
    return [_strip(report, found, at, names) for at in order]


def class_name(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number."""
    if label < 0:
        return "no answer"
    return names[label] if names is not None and label < len(names) else str(label)


def _strip(report: AuditReport, found: Examples, at: int, names: Sequence[str] | None) -> Strip:
    row = report.rows[int(found.rows[at])]
    clean, adversarial, purified = (
        torch.from_numpy(part[at]) for part in (found.clean, found.adversarial, found.purified)
    )
    images = [("clean", clean), ("adversarial", adversarial), (f"change × {GAIN}", difference(clean, adversarial))]
    if not purified.isnan().any():
        images.append(("purified", purified.clamp(0, 1)))
    answers = [
        f"{class_name(int(answer), names)}" + ("" if np.isnan(sure) else f" ({sure:.0%})")
        for answer, sure in zip(found.answers[at], found.confidences[at], strict=True)
    ]
    return Strip(
        fell=bool(found.fell[at]),
        threat=str(row.threat),
        attack=f"{row.attack}, {row.route}",
        index=int(found.indices[at]),
        true_class=class_name(int(found.labels[at]), names),
        before=answers[0],
        after=answers[1],
        rejected=bool(found.rejected[at] > 0.5),
        images=[(name, data_uri(image.numpy())) for name, image in images],
    )


def data_uri(pixels: Array) -> str:
    """Pixels (C, H, W) in [0, 1] with 1 or 3 channels -> a small PNG as a ``data:`` URI."""
    bytes_ = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(bytes_[:, :, 0] if bytes_.shape[2] == 1 else np.ascontiguousarray(bytes_))
    image.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
