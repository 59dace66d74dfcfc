"""Pictures of a few images through attack and purifier: a row a stage, a column an image."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .atomic import atomic_write
from .errors import AuditError
from .guard import GuardedModule
from .interfaces import Attack
from .seeding import SampleGenerator, mix_seed
from .target import Route, Target
from .threat import Threat

Stage = tuple[Tensor, Tensor]
"""Pixels (N, C, H, W), and the class the classifier sees in each, (N,)."""


@torch.no_grad()
def stages(
    guard: GuardedModule, pixels: Tensor, labels: Tensor, attack: Attack, threat: Threat, *, seed: int = 0
) -> dict[str, Stage]:
    """Clean images, adversarial ones along the routes oblivious and exact, and what the purifier makes of them.

    ``pixels`` (N, C, H, W) in [0, 1], ``labels`` (N,). A random purifier shows its mean.
    """
    classifier = guard.pixel_classifier()

    def stage(images: Tensor, purified: bool) -> Stage:
        shown = guard.purifier.purify(images) if purified else images
        return shown, classifier(shown).argmax(1)

    found = {"clean": stage(pixels, False), "clean, purified": stage(pixels, True)}
    routes: tuple[Route, ...] = ("oblivious", "exact")
    for route in routes:
        streams = [SampleGenerator(mix_seed(seed, kind, route), range(len(pixels))) for kind in ("target", "attack")]
        target = Target(classifier, guard.purifier, route, streams[0])
        adversarial = threat.project(attack.perturb(target, pixels, labels, threat, streams[1]).detach(), pixels)
        found[f"adversarial ({route})"] = stage(adversarial, False)
        found[f"adversarial ({route}), purified"] = stage(adversarial, True)
    return found


def write_strip(path: str | Path, rows: Mapping[str, Stage], labels: Tensor, classes: Sequence[str]) -> Path:
    """Write the stages as a PNG; a caption names what the classifier sees, green where it is ``labels`` (N,)."""
    from matplotlib.figure import Figure  # a second to import, which no other command should pay

    if not len(labels):
        raise AuditError("no image to show: expected at least one")
    figure = Figure(figsize=(1.15 * len(labels) + 1.6, 1.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(labels), squeeze=False)
    for line, (name, (pixels, seen)) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(
            name.replace(" (", "\n(").replace(", ", ",\n"), fontsize=8, rotation=0, ha="right", va="center"
        )
        for axis, image, got, label in zip(line, pixels.cpu(), seen.tolist(), labels.tolist(), strict=True):
            axis.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(
                classes[got] if got < len(classes) else str(got),
                fontsize=8,
                color="green" if got == label else "red",
            )
            axis.set_xticks([])
            axis.set_yticks([])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return atomic_write(path, content.getvalue())
