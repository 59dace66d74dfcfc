"""Crafting adversarial images and judging them, a batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..answering import answer, draw
from ..attacking.target import Spent, Target
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..data.pixels import check_pixels
from ..errors import AuditError
from ..foreign_code import Attempt, cause_of
from ..seeding import SampleGenerator, mix_seed
from ..vocabulary import Route
from .counting import Judged, Tally
from .plan import QUERY_NEEDS, Job
from .report import Model

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


Standing = dict[Model, Judged]
"""A batch as the attacks of a sequence have left it, for each model."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W), labels (N,), and the images' positions in their data set."""

    pixels: Tensor
    labels: Tensor
    indices: Sequence[int]

    def select(self, at: Tensor) -> Batch:
        """The images at positions ``at``, (n,)."""
        if len(at) == len(self.indices):
            return self
        on_device = at.to(self.pixels.device)
        return Batch(self.pixels[on_device], self.labels[on_device], [self.indices[i] for i in at.tolist()])

    def split(self, size: int) -> list[Batch]:
        """The images in batches of at most ``size``."""
        return [self.select(at) for at in torch.split(torch.arange(len(self.indices)), size)]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Crafts and judges; holds what stays the same from batch to batch."""

    classifier: PixelClassifier
    purifier: Purifier
    device: torch.device
    seed: int
    eot: int
    judgements: int
    batch_size: int = 250

    def over(
        self,
        data: ImageData,
        jobs: Sequence[Job],
        transfers: bool,
        progress: Progress | None,
    ) -> list[Tally]:
        """Every figure, over all batches; ``transfers`` judges the oblivious images on the guard too."""
        clean: dict[Model, Tally] = {"undefended": Tally("undefended"), "guarded": Tally("guarded")}
        plans = [(job, _tallies(job, transfers)) for job in jobs]
        starts = range(0, len(data), self.batch_size)
        done, total = 0, len(starts) * (1 + len(jobs))
        for start in starts:
            indices = range(start, min(start + self.batch_size, len(data)))
            pixels, labels = (part.to(self.device) for part in data.batch(indices))
            check_pixels(pixels, name=data.name)
            batch = Batch(pixels, labels, indices)
            unharmed: Standing = {}
            for model, tally in clean.items():
                with tally.timed():
                    unharmed[model] = self.judge(model, batch, "none")
                tally.add(unharmed[model], unharmed[model])
            sequences: dict[tuple[str, Threat], Standing] = {}
            done += 1
            for job, tallies in plans:
                if progress is not None:
                    progress(done, total, str(job))
                standing = None
                if job.sequence is not None:
                    standing = sequences.setdefault((job.sequence, job.threat), dict(unharmed))
                self._attack(job, tallies, batch, unharmed, standing)
                done += 1
        if progress is not None:
            progress(done, total, "done")
        return [*clean.values(), *(tally for _, tallies in plans for tally in tallies)]

    def _attack(
        self, job: Job, tallies: Sequence[Tally], batch: Batch, unharmed: Standing, standing: Standing | None
    ) -> None:
        """Attack the images of a batch, or those still ``standing`` in a sequence, which is brought up to date."""
        if any(tally.error for tally in tallies):
            return
        at = torch.arange(len(batch.indices))
        if standing is not None:
            # Images made without knowing the guard go on until it is fooled too; by queries they are not worth it.
            judges = tallies[:1] if job.named.attack.needs in QUERY_NEEDS else tallies
            at = torch.stack([standing[tally.model].shares for tally in judges]).amax(0).nonzero().squeeze(1)
        tried, spent, began = batch.select(at), Spent(), time.perf_counter()
        found = tried.pixels
        if len(at):
            with Attempt((Exception, SystemExit)) as attempt:
                found = self.craft(job, tried, spent)
            if attempt.error is not None:  # the other attacks go on
                for tally in tallies:
                    tally.error = cause_of(attempt.error)
                return
        crafting = time.perf_counter() - began
        for tally in tallies:
            tally.cost(len(at), spent, crafting)
            with Attempt() as attempt, tally.timed():
                judged = self.judge(tally.model, dataclasses.replace(tried, pixels=found), str(job))
            if attempt.error is not None:
                tally.error = f"judging failed: {cause_of(attempt.error)}"
                continue
            if standing is None:
                tally.add(judged, judged)
            else:
                standing[tally.model] = standing[tally.model].worse_of(at, judged)
                tally.add(standing[tally.model], unharmed[tally.model].replaced(at, judged))

    def craft(self, job: Job, batch: Batch, spent: Spent) -> Tensor:
        """The attack's images, (N, C, H, W), projected into the threat."""
        pixels, labels = batch.pixels, batch.labels
        streams = [SampleGenerator(mix_seed(self.seed, kind, str(job)), batch.indices) for kind in ("target", "attack")]
        target = Target(self.classifier, self.purifier, job.route, streams[0], eot=job.draws(self.eot))
        target.spent = spent
        with torch.enable_grad():
            found = job.named.attack.perturb(target, pixels.clone(), labels.clone(), job.threat, streams[1])
        if not isinstance(found, Tensor) or found.shape != pixels.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise AuditError(f"attack {job.named.spec!r} must return images {tuple(pixels.shape)}, got {got}; mend it")
        found = found.detach().to(pixels)
        if not found.isfinite().all():
            raise AuditError(f"attack {job.named.spec!r} returned NaN or infinity on the route {job.route!r}; mend it")
        return job.threat.project(found, pixels)

    @torch.no_grad()
    def judge(self, model: Model, batch: Batch, what: str) -> Judged:
        """How often each image is right, with noise no attack has seen; its score, if the model is guarded."""
        pixels, labels = batch.pixels, batch.labels
        if not len(labels):
            return Judged(torch.zeros(0, dtype=torch.float64), None if model == "undefended" else torch.zeros(0))
        if model == "undefended":
            right = _right(self.classifier(pixels), labels)  # its preprocessing rounds uint8
            return Judged(right.double().cpu(), None)
        if self.classifier.preprocessing.dtype == "uint8":
            pixels = (pixels * 255).round() / 255  # a guard of bytes is given bytes
        rights, score = [], None
        for judgement in range(self.judgements):
            generator = SampleGenerator(mix_seed(self.seed, "judge", what, judgement), batch.indices)
            noise = draw(self.purifier, pixels, generator)
            # The score depends on the image alone, so one judgement is enough.
            given = answer(self.purifier, self.classifier, pixels, noise, scored=score is None)
            score = given.score if score is None else score
            rights.append(_right(given.output, labels))
        assert score is not None
        return Judged(torch.stack(rights).double().mean(0).cpu(), score.float().cpu())


def _tallies(job: Job, transfers: bool) -> list[Tally]:
    """The rows a job fills: that of the model it attacks, then those its images are tried on too."""
    if job.route != "oblivious":
        return [Tally("guarded", job, job.route)]
    # Nothing stands before the undefended classifier, so there these images are the white-box attack.
    own: Route = "exact" if job.named.attack.needs == "gradient" else "none"
    alone = Tally("undefended", job, own)
    return [alone, Tally("guarded", job, "oblivious")] if transfers else [alone]


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """NaN logits are never right."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
