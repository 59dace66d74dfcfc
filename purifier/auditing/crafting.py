"""Crafting: one attack's adversarial images for a batch, projected into the threat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..attacking.target import Spent, Target
from ..contracts.purifier import Classifying
from ..errors import AuditError
from ..foreign_code import Attempt
from ..seeding import SampleGenerator, mix_seed
from ..torch_tools.process_settings import kept_settings
from .plan import Job
from .preflight import FIRST_IMAGES, everything_asked
from .setup import AuditSetup, Batch

NAMED_CHANGES = 3
"""How many of the things that an attack changed its error names."""


def craft(setup: AuditSetup, job: Job, batch: Batch, spent: Spent) -> Tensor:
    """Run the attack; return its images (N, C, H, W), projected into the threat.

    Whatever it changes of the classifier, the purifier and the process is put back.
    """
    pixels, labels = batch.pixels, batch.labels
    streams = [SampleGenerator(mix_seed(setup.seed, kind, str(job)), batch.indices) for kind in ("target", "attack")]
    with _unchanged(setup, job, pixels):
        setup = setup if job.model == "guarded" else setup.alone
        eot, rejection = job.draws(setup.eot), setup.rejection
        target = Target(setup.classifier, setup.purifier, job.route, streams[0], eot=eot, rejection=rejection)
        target.spent = spent
        given = pixels.clone(), labels.clone()
        seed = mix_seed(setup.seed, "process", str(job), *batch.indices[:1])
        with kept_settings(seed), torch.enable_grad():
            found = job.named.attack.perturb(target, *given, job.threat, streams[1])
    _check_kept(job, given, (pixels, labels))
    _check_found(job, found, pixels)
    return job.threat.project(found.detach(), pixels)


@contextmanager
def _unchanged(setup: AuditSetup, job: Job, pixels: Tensor) -> Iterator[None]:
    """Put back what the attack changes of classifier and purifier, and raise ``AuditError`` that says what it was."""
    if setup.state.own is None:
        setup.state.own = changed_by_asking(setup, pixels)
    try:
        yield
    finally:
        changes = setup.state.changes()
        if changes:
            setup.state.restore()
    if changes:
        more = f" and {len(changes) - NAMED_CHANGES} more" if len(changes) > NAMED_CHANGES else ""
        raise AuditError(
            f"attack {job.named.spec!r} changed {', '.join(changes[:NAMED_CHANGES])}{more}; make it leave classifier "
            "and purifier as they are, and only ask its target"
        )


def changed_by_asking(setup: AuditSetup, pixels: Tensor) -> frozenset[str]:
    """What classifier and purifier change themselves when they are asked, which is not an attack's fault."""
    classifier, purifier = setup.classifier, setup.purifier
    for images in (pixels[:1], pixels[:FIRST_IMAGES]):
        for tracking in (False, True):
            with Attempt(), torch.set_grad_enabled(tracking):
                everything_asked(purifier)(images.clone().requires_grad_(tracking))
                classifier(images.clone().requires_grad_(tracking))
                if isinstance(purifier, Classifying):
                    purifier.classify(images.clone().requires_grad_(tracking))
    return frozenset(setup.state.changes())


def _check_kept(job: Job, given: tuple[Tensor, Tensor], originals: tuple[Tensor, Tensor]) -> None:
    for name, one, original in zip(("pixels", "labels"), given, originals, strict=True):
        if not torch.equal(one, original):
            raise AuditError(
                f"attack {job.named.spec!r} changed its {name} in place; make it work on a copy: {name}.clone()"
            )


def _check_found(job: Job, found: object, pixels: Tensor) -> None:
    spec = job.named.spec
    if not isinstance(found, Tensor) or found.shape != pixels.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise AuditError(f"attack {spec!r}: expected images {tuple(pixels.shape)}, got {got}; fix the attack")
    if (found.dtype, found.device) != (pixels.dtype, pixels.device):
        raise AuditError(
            f"attack {spec!r}: expected images of {pixels.dtype} on {pixels.device}, got {found.dtype} on "
            f"{found.device}; make it return found.to(pixels)"
        )
    if not found.isfinite().all():
        raise AuditError(f"attack {spec!r} returned NaN or infinity on the route {job.route!r}; fix the attack")
