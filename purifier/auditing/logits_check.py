"""Whether logits are those of the image alone: no layer, call, batch or softmax stands between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..answering import answer, draw
from ..attacking.threat import Threat
from ..classifiers.logits import are_probabilities
from ..seeding import SampleGenerator, mix_seed
from .comparing import exceeds_one_percent
from .probing import logits_differ, moved
from .report import Flag
from .setup import AuditSetup, Batch

SINGLE_IMAGES = 8
"""How many images are also shown one at a time."""


def flags_of_layers(setup: AuditSetup) -> Iterator[Flag]:
    """Look for BatchNorm layers that use the statistics of a batch."""
    halves = [("classifier", setup.classifier), ("purifier", setup.purifier)]
    for half, module in halves:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                own = name.removeprefix("module").removeprefix(".") if half == "classifier" else name
                where = f"{half}: {own} ({type(layer).__name__})" if own else f"{half} ({type(layer).__name__})"
                if layer.running_mean is None:
                    yield Flag("batch-norm", f"{where} has no running statistics")
                elif layer.training:
                    yield Flag("batch-norm", f"{where} is in training mode")


@torch.no_grad()
def flags_of_logits(setup: AuditSetup, batch: Batch, threats: Sequence[Threat]) -> Iterator[Flag]:
    """Ask for the same logits again: in another call, another order and alone; clean images and moved ones."""
    pixels, total = batch.pixels, len(batch.labels)
    noise = draw(setup.purifier, pixels, SampleGenerator(mix_seed(setup.seed, "probe"), batch.indices))
    if noise is not None and setup.eot == 1:
        yield Flag("random-without-eot", "the purifier draws noise, and gradients use 1 draw")

    def logits(at: Tensor, images: Tensor = pixels) -> Tensor:
        answered = answer(setup.purifier, setup.classifier, images[at], None if noise is None else noise[at])
        found: Tensor = answered.output.float()
        return found

    def count_changed(at: Tensor, found: Tensor) -> int:
        """How many images' logits differ from those in the batch by more than rounding."""
        return int(logits_differ(first[at], found).sum())

    everyone = torch.arange(total, device=pixels.device)
    first = logits(everyone)
    if are_probabilities(first):
        low, high = first.sum(1).aminmax()
        yield Flag(
            "probabilities", f"all outputs of {total} images are in [0, 1], their sums in [{low:.4f}, {high:.4f}]"
        )
    elif setup.classifier.output.kind == "binary-logit" and bool((first[:, 1] >= 0).all() & (first[:, 1] <= 1).all()):
        yield Flag("probabilities", f"the logits of all {total} images are in [0, 1], like probabilities of class 1")
    again = count_changed(everyone, logits(everyone))
    if exceeds_one_percent(again, total):
        # Logits that change on every call also change with the batch: batch-dependent would say nothing more.
        yield Flag("nondeterministic", f"the logits of {again} of {total} images differ between two calls")
        return
    backwards, singles = everyone.flip(0), torch.split(everyone[:SINGLE_IMAGES], 1)
    widest = max(threats, key=lambda threat: threat.eps)
    for images, what in ((pixels, ""), (moved(setup, batch, widest, "batch"), " moved at random")):
        first = logits(everyone, images)  # a guard can tell clean images from those that attacks make
        reordered = count_changed(backwards, logits(backwards, images))
        alone = sum(count_changed(at, logits(at, images)) for at in singles)
        if exceeds_one_percent(reordered, total) or exceeds_one_percent(alone, len(singles)):
            said = f"the logits of {reordered} of {total} images{what} change when the batch is reversed, those of "
            yield Flag("batch-dependent", said + f"{alone} of {len(singles)} when the image is alone")
            return
