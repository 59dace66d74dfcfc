"""Whether a guard remembers: what it answers must depend on the image alone, not on what it has seen before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..answering import draw, purify
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Classifying, Purifier
from ..data.images import ImageData
from ..foreign_code import Attempt
from ..seeding import SampleGenerator, mix_seed
from ..torch_tools.fingerprint import sha256_of
from .comparing import exceeds_one_percent
from .presets import PROBED
from .probing import fresh, images_differ, logits_differ, moved, scores_differ
from .process_copy import can_copy_process, in_process_copy
from .report import Flag
from .setup import AuditSetup, Batch

REMEMBERED_IMAGES = 16
"""How many images the guard is shown."""
NEARER = 0.25
"""Every second image is asked about at this fraction of the way."""
ASKED, SHOWN = True, False
"""What happens to a guard: it is asked about the places, or shown the images."""


def flags_of_memory(
    setup: AuditSetup, data: ImageData, threats: Sequence[Threat], *, count: int = PROBED
) -> Iterator[Flag]:
    """Ask about places near images that the guard has not seen, before and after it has seen the images.

    The images are those of the data, shifted by a third of their size, so nobody has shown it anything near them. Each
    history is that of a copy of the process, where a guard can remember nothing of the others wherever it keeps it.
    Where the process cannot be copied, it is that of a copy of the modules, and only what those hold is seen.
    """
    batch = _unseen(setup, data, min(REMEMBERED_IMAGES, count))
    near, indices = _near(setup, batch, threats)
    flags: list[Flag] = []
    with Attempt() as attempt:
        flags += _compared(setup, batch, near, indices, copies=can_copy_process(setup.device))
    if attempt.error is not None:  # torch cannot always differentiate in a copy of the process
        flags += _compared(setup, batch, near, indices, copies=False)
    yield from flags


def _compared(setup: AuditSetup, batch: Batch, near: Tensor, indices: Sequence[int], *, copies: bool) -> list[Flag]:
    """Compare the answers after different histories, each in a copy of the process or of the modules."""

    def answers(*history: bool, seed: int = 0) -> list[dict[str, Tensor]]:
        """What a guard that has seen nothing else says about the places, each time that it is ``ASKED``."""

        def run() -> dict[str, Tensor]:
            parts = _Parts(setup, *((setup.classifier, setup.purifier) if copies else fresh(setup)))
            said: list[dict[str, Tensor]] = []
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for step in history:
                    if step == ASKED:
                        said.append(parts.answers(near, indices))
                    else:
                        parts.see(batch)
            return {name: torch.stack([one[name] for one in said]) for name in said[0]}

        found = in_process_copy(run) if copies else run()
        return [{name: values[at] for name, values in found.items()} for at in range(history.count(ASKED))]

    # A copy costs more than many questions, so few of them answer all.
    first, second, third = answers(ASKED, ASKED, SHOWN, ASKED)
    (unasked,) = answers(SHOWN, ASKED)
    again, changed = _changed(first, second), max(_changed(first, third), _changed(first, unasked))
    if not changed and not again:
        return []
    (redrawn,) = answers(ASKED, seed=1)
    if _changed(first, redrawn):
        return []  # its answers are random, which is another flag
    when = "nearby images have been shown" if changed > again else "it has answered before"
    return [Flag("stateful", f"the answers to {max(changed, again)} of {len(near)} images change once {when}")]


@dataclass(frozen=True)
class _Parts:
    """A guard's parts, asked for all that they say."""

    setup: AuditSetup
    classifier: PixelClassifier
    purifier: Purifier

    def answers(self, pixels: Tensor, indices: Sequence[int]) -> dict[str, Tensor]:
        """Purified pixels, scores, the purifier's own classes, and logits unless ONNX Runtime gives them."""
        noise = draw(self.purifier, pixels, SampleGenerator(mix_seed(self.setup.seed, "probe", "memory"), indices))
        purified, score = purify(self.purifier, pixels, noise, scored=True)
        plain, _ = purify(self.purifier, pixels, noise)
        assert score is not None
        found = {"image": purified, "plain": plain, "score": score, "alone": self.purifier.score(pixels)}
        if self.setup.rejection.on_reject == "reclassify" and isinstance(self.purifier, Classifying):
            found["classes"] = self.purifier.classify(pixels)
        if self.classifier.differentiable:
            found["logits"] = self.classifier(plain)
        return found

    def see(self, batch: Batch) -> None:
        """See the images in every way that an audit shows them."""
        self.answers(batch.pixels, batch.indices)
        if self.classifier.differentiable:
            with torch.enable_grad():
                self.answers(batch.pixels.clone().requires_grad_(), batch.indices)


def _changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    """For how many images two answers differ by more than rounding; 0 if they are too few to count."""
    differ = {"image": images_differ, "plain": images_differ, "score": scores_differ, "alone": scores_differ}
    marks = [differ.get(name, logits_differ)(one[name], other[name]) for name in one]
    count = int(torch.stack(marks).any(0).sum())
    return count if exceeds_one_percent(count, len(marks[0])) else 0


def _near(setup: AuditSetup, batch: Batch, threats: Sequence[Threat]) -> tuple[Tensor, list[int]]:
    """Places near each image within each threat, some of them nearer, and the images' positions."""
    places = [moved(setup, batch, threat, "memory") for threat in threats]
    for place in places:
        place[::2] = batch.pixels[::2] + NEARER * (place[::2] - batch.pixels[::2])
    return torch.cat(places), [index for _ in places for index in batch.indices]


class Answers:
    """What a guard says about some images before it is attacked, to see whether it says the same afterwards.

    The very modules that attacks ask are asked, so a guard that counts is found however long it waits.
    """

    def __init__(self, setup: AuditSetup, data: ImageData) -> None:
        self._setup, self._batch = setup, _unseen(setup, data, REMEMBERED_IMAGES)
        self._before: dict[str, Tensor] = {}
        with Attempt():  # a guard that fails here is another flag
            self._before = self._ask()

    def flags(self) -> Iterator[Flag]:
        """A flag if it now answers otherwise; none if its answers are random, which is another flag."""
        if not self._before:
            return
        now = self._ask()
        changed = _changed(self._before, now)
        if changed and not _changed(now, self._ask()):
            total = len(self._batch.indices)
            yield Flag("stateful", f"the answers to {changed} of {total} images change once the attacks have run")

    def _ask(self) -> dict[str, Tensor]:
        with torch.no_grad():
            parts = _Parts(self._setup, self._setup.classifier, self._setup.purifier)
            return {
                name: value.clone() for name, value in parts.answers(self._batch.pixels, self._batch.indices).items()
            }


def _unseen(setup: AuditSetup, data: ImageData, count: int) -> Batch:
    """The first images of the data, shifted by a third of their size, so nobody has shown anything near them."""
    batch = setup.batch(data, range(min(count, setup.batch_size, len(data))))
    height, width = batch.pixels.shape[2:]
    return dataclasses.replace(batch, pixels=batch.pixels.roll((height // 3, width // 3), (2, 3)))


class Weights:
    """Fingerprints of the weights and buffers of some modules, to see whether an audit changes them."""

    def __init__(self, **modules: nn.Module) -> None:
        self._modules = modules
        self.before = {name: sha256_of(module) for name, module in modules.items()}

    def flags(self) -> Iterator[Flag]:
        """A flag for each module whose weights or buffers are no longer what they were."""
        for name, module in self._modules.items():
            if sha256_of(module) != self.before[name]:
                yield Flag("stateful", f"the weights or buffers of the {name} changed during the audit")
