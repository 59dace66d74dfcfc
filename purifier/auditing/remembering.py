"""Whether a guard remembers: what it answers must depend on the image alone, not on what it has seen before."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..answering import answer, draw
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..seeding import SampleGenerator, mix_seed
from .comparing import exceeds_one_percent
from .forgetting import forgetting
from .presets import PROBED
from .probing import fresh, logits_differ, moved
from .report import Flag
from .setup import AuditSetup, Batch

REMEMBERED_IMAGES = 16
"""How many images the guard is shown."""
NEARER = 0.25
"""Every second image is asked about at this fraction of the way."""


def flags_of_memory(
    setup: AuditSetup, data: ImageData, threats: Sequence[Threat], *, count: int = PROBED
) -> Iterator[Flag]:
    """Ask about places near images that the guard has not seen, before and after it has seen the images.

    The images are those of the data, shifted by a third of their size: so nobody has shown it anything near them, not
    even an earlier audit. What it keeps of them outside its modules is put back.
    """
    batch = setup.batch(data, range(min(REMEMBERED_IMAGES, count, setup.batch_size, len(data))))
    height, width = batch.pixels.shape[2:]
    batch = dataclasses.replace(batch, pixels=batch.pixels.roll((height // 3, width // 3), (2, 3)))
    near, indices = _near(setup, batch, threats)

    def ask(parts: tuple[PixelClassifier, Purifier]) -> Tensor:
        classifier, purifier = parts
        noise = draw(purifier, near, SampleGenerator(mix_seed(setup.seed, "probe", "memory"), indices))
        logits: Tensor = answer(purifier, classifier, near, noise).output.float()
        return logits

    def show(parts: tuple[PixelClassifier, Purifier]) -> None:
        """Show it the images themselves in every way that an audit does."""
        classifier, purifier = parts
        noise = draw(purifier, batch.pixels, SampleGenerator(mix_seed(setup.seed, "probe", "memory"), batch.indices))
        answer(purifier, classifier, batch.pixels, noise, scored=True)
        if classifier.differentiable:
            with torch.enable_grad():
                leaf = batch.pixels.clone().requires_grad_()
                total = answer(purifier, classifier, leaf, noise).output.sum()
            if total.requires_grad:
                torch.autograd.grad(total, leaf, allow_unused=True)

    with torch.no_grad():
        first, second = fresh(setup), fresh(setup)
        with forgetting(setup.classifier, setup.purifier):
            before = ask(first)
        with forgetting(setup.classifier, setup.purifier):
            same = ask(fresh(setup))
        with forgetting(setup.classifier, setup.purifier):
            show(first)
            after = ask(first)
        with forgetting(setup.classifier, setup.purifier):
            show(second)
            shown_first = ask(second)
    if exceeds_one_percent(int(logits_differ(before, same).sum()), len(near)):
        return  # its answers are random; this is another flag
    changed = logits_differ(before, after) | logits_differ(before, shown_first)
    if exceeds_one_percent(int(changed.sum()), len(near)):
        yield Flag(
            "stateful",
            f"the answers to {int(changed.sum())} of {len(near)} images change once nearby images have been shown",
        )


def _near(setup: AuditSetup, batch: Batch, threats: Sequence[Threat]) -> tuple[Tensor, list[int]]:
    """Places near each image within each threat, some of them nearer, and the images' positions."""
    places = [moved(setup, batch, threat, "memory") for threat in threats]
    for place in places:
        place[::2] = batch.pixels[::2] + NEARER * (place[::2] - batch.pixels[::2])
    return torch.cat(places), [index for _ in places for index in batch.indices]


class Weights:
    """Fingerprints of the weights and buffers of some modules, to see whether an audit changes them."""

    def __init__(self, **modules: nn.Module) -> None:
        self._modules = modules
        self._before = {name: _digest(module) for name, module in modules.items()}

    def flags(self) -> Iterator[Flag]:
        """A flag for each module whose weights or buffers are no longer what they were."""
        for name, module in self._modules.items():
            if _digest(module) != self._before[name]:
                yield Flag("stateful", f"the weights or buffers of the {name} changed during the audit")


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        bits = repr(value).encode()
        if isinstance(value, Tensor):
            bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(name.encode() + bits)
    return digest.hexdigest()
