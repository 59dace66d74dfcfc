"""Crafting adversarial images and judging them, a batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..classifier import PixelClassifier
from ..data import ImageData
from ..errors import AuditError
from ..interfaces import Purifier
from ..pixels import check_pixels
from ..seeding import SampleGenerator, mix_seed
from ..target import Route, Spent, Target
from .plan import Job
from .tally import Tally

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Crafts and judges; holds what stays the same from batch to batch."""

    classifier: PixelClassifier
    purifier: Purifier
    device: torch.device
    seed: int
    eot: int
    judgements: int

    def over(
        self,
        data: ImageData,
        jobs: Sequence[Job],
        batch_size: int,
        transfers: bool,
        progress: Progress | None,
    ) -> list[Tally]:
        """Every figure, over all batches; ``transfers`` judges the oblivious images on the guard too."""
        clean = Tally("undefended"), Tally("guarded")
        pairs = [(job, *_tallies(job, transfers)) for job in jobs]
        starts = range(0, len(data), batch_size)
        done, total = 0, len(starts) * (1 + len(jobs))
        for start in starts:
            indices = range(start, min(start + batch_size, len(data)))
            pixels, labels = (part.to(self.device) for part in data.batch(indices))
            check_pixels(pixels, name=data.name)
            for tally, judge in ((clean[0], self._judge_alone), (clean[1], self._judge_guard)):
                with tally.timed():
                    tally.add(*judge(pixels, labels, indices, "none"))
            done += 1
            for job, alone, guarded in pairs:
                if progress is not None:
                    progress(done, total, str(job))
                self._attack(job, alone, guarded, pixels, labels, indices)
                done += 1
        if progress is not None:
            progress(done, total, "done")
        attacked = [tally for _, *both in pairs for tally in both if tally is not None]
        return [*clean, *attacked]

    def _attack(
        self,
        job: Job,
        alone: Tally | None,
        guarded: Tally | None,
        pixels: Tensor,
        labels: Tensor,
        indices: Sequence[int],
    ) -> None:
        tallies = [tally for tally in (alone, guarded) if tally is not None]
        if any(tally.error for tally in tallies):
            return
        spent, began = Spent(), time.perf_counter()
        try:
            found = self._craft(job, pixels, labels, indices, spent)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a third party's attack can fail in any way; others go on
            for tally in tallies:
                tally.error = f"{type(error).__name__}: {error}"
            return
        crafting = time.perf_counter() - began
        for one, judge in ((alone, self._judge_alone), (guarded, self._judge_guard)):
            if one is not None:
                one.cost(spent, crafting)
                with one.timed():
                    one.add(*judge(found, labels, indices, str(job)))

    def _craft(self, job: Job, pixels: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent) -> Tensor:
        """The attack's images, (N, C, H, W), projected into the threat."""
        streams = [SampleGenerator(mix_seed(self.seed, kind, str(job)), indices) for kind in ("target", "attack")]
        target = Target(self.classifier, self.purifier, job.route, streams[0], eot=self.eot)
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
    def _judge_alone(self, pixels: Tensor, labels: Tensor, indices: Sequence[int], what: str) -> tuple[Tensor, None]:
        """Whether the classifier alone is right, (1, N); it has no score."""
        return _right(self.classifier(pixels), labels).unsqueeze(0), None  # its preprocessing rounds uint8

    @torch.no_grad()
    def _judge_guard(self, pixels: Tensor, labels: Tensor, indices: Sequence[int], what: str) -> tuple[Tensor, Tensor]:
        """Whether the guard is right in each judgement, (judgements, N), with noise no attack has seen; scores (N,)."""
        if self.classifier.preprocessing.dtype == "uint8":
            pixels = (pixels * 255).round() / 255  # a guard of bytes is given bytes
        rights, score = [], None
        for judgement in range(self.judgements):
            generator = SampleGenerator(mix_seed(self.seed, "judge", what, judgement), indices)
            noise = self.purifier.draw(pixels, generator)
            if score is None:  # it depends on the image alone, so one judgement is enough
                purified, score = self.purifier.purify_and_score(pixels, noise)
            else:
                purified = self.purifier.purify(pixels, noise)
            rights.append(_right(self.classifier(purified), labels))
        assert score is not None
        return torch.stack(rights), score


def _tallies(job: Job, transfers: bool) -> tuple[Tally | None, Tally | None]:
    """The rows a job fills: the classifier's own and the guard's."""
    if job.route != "oblivious":
        return None, Tally("guarded", job, job.route)
    # Nothing stands before the undefended classifier, so there these images are the white-box attack.
    own: Route = "exact" if job.named.attack.needs == "gradient" else "none"
    return Tally("undefended", job, own), Tally("guarded", job, "oblivious") if transfers else None


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """NaN logits are never right."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
