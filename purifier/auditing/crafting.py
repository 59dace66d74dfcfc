"""Crafting: one attack's adversarial images for a batch, projected into the threat."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacking.target import Spent, Target
from ..errors import AuditError
from ..seeding import SampleGenerator, mix_seed
from .plan import Job
from .setup import AuditSetup, Batch


def craft(setup: AuditSetup, job: Job, batch: Batch, spent: Spent) -> Tensor:
    """Run the attack; return its images (N, C, H, W), projected into the threat."""
    pixels, labels = batch.pixels, batch.labels
    streams = [SampleGenerator(mix_seed(setup.seed, kind, str(job)), batch.indices) for kind in ("target", "attack")]
    setup = setup if job.model == "guarded" else setup.alone
    eot, rejection = job.draws(setup.eot), setup.rejection
    target = Target(setup.classifier, setup.purifier, job.route, streams[0], eot=eot, rejection=rejection)
    target.spent = spent
    given = pixels.clone(), labels.clone()
    with torch.enable_grad():
        found = job.named.attack.perturb(target, *given, job.threat, streams[1])
    _check_kept(job, given, (pixels, labels))
    _check_found(job, found, pixels)
    return job.threat.project(found.detach(), pixels)


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
