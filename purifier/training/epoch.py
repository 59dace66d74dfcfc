"""One epoch of training. Its random numbers depend on seed, epoch and image index, and on nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier, Scheduled
from ..data.images import ImageData
from ..errors import PurifierError, TrainingError
from ..foreign_code import explained
from ..seeding import SampleGenerator, mix_seed
from .augmentation import augmented
from .optimisation import Follower
from .recipe import Batch, Recipe
from .torchrun import Processes

REPORT_STEPS = 20
"""Number of steps between two readings of the loss: each one makes a GPU wait."""
WATCHED = 250
"""Number of images, spread evenly over the data, on which a recipe checks training after each epoch."""


@dataclass(frozen=True)
class Progress:
    """The progress of training, passed to ``progress`` every few steps."""

    epoch: int
    epochs: int
    images: int
    """Images seen since the start of epoch 1; equal to ``total`` at the end."""
    total: int
    loss: float
    images_per_second: float


class NotFinite(Exception):
    """The loss, a weight or the optimizer's state is NaN or infinite; the message says which."""


class _Step(nn.Module):
    """A recipe's step as a module, for torch's DistributedDataParallel."""

    def __init__(self, recipe: Recipe, purifier: Purifier) -> None:
        super().__init__()
        self.recipe, self.purifier = recipe, purifier
        self.names: list[str] = []

    def forward(self, batch: Batch) -> Tensor:
        terms = self.recipe.step(self.purifier, batch)
        self.names = list(terms)
        return torch.stack([term.float() for term in terms.values()])


class Run:
    """The state and settings that all epochs share."""

    def __init__(
        self,
        recipe: Recipe,
        purifier: Purifier,
        follower: Follower,
        data: ImageData,
        *,
        classifier: PixelClassifier | None,
        processes: Processes,
        device: torch.device,
        batch_size: int,
        epochs: int,
        seed: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.recipe, self.purifier, self.follower, self.data = recipe, purifier, follower, data
        self.classifier, self.processes, self.device = classifier, processes, device
        self.batch_size, self.epochs, self.seed, self.progress = batch_size, epochs, seed, progress
        self.inner = _Step(recipe, purifier)
        self.step = processes.wrapped(self.inner, device)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch, counted from 1; return its log entry.

        Raises
        ------
        NotFinite
            The loss, a weight or the optimizer's state became NaN or infinite.
        TrainingError
            The recipe reports that training went wrong, or the purifier or classifier failed.
        """
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self._seed("shuffle", epoch)))
        batches = list(_batches(order.tolist(), self.batch_size))
        rows: list[Tensor] = []
        seen = 0
        start = time.perf_counter()
        # Recipes and purifiers take their randomness from the generator. The seed here makes other layers (dropout)
        # repeatable after a resume, and the fork leaves the caller's own random state unchanged.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._seed("layers", epoch))
            if isinstance(self.purifier, Scheduled):
                with _explained(epoch):
                    self.purifier.begin_epoch(epoch, self.epochs, self.data)
                self.processes.synchronise(self.purifier)
            reported = 0
            shares = [self.processes.share(indices) for indices in batches]
            loaded = self.data.batches([own for own, _ in shares])
            for step, (indices, (own, weight), images) in enumerate(zip(batches, shares, loaded, strict=True), 1):
                done = ((epoch - 1) * len(batches) + step - 1) / (self.epochs * len(batches))
                batch = self._batch(images, own, epoch, done=done)
                pixels = augmented(batch.pixels, batch.generator, self.follower.settings.augment)
                with self.follower.settings.autocast(self.device), _explained(epoch):
                    row = self.step(replace(batch, pixels=pixels))
                with _explained(epoch):
                    self.follower.step(row.sum() * (weight * self.processes.count), batch.done)
                rows.append(row.detach() * weight)
                seen += len(indices)
                if step % REPORT_STEPS == 0 or step == len(batches):
                    rows[reported:] = self.processes.summed(torch.stack(rows[reported:])).unbind()
                    _check_finite(rows[reported:], self.inner.names, epoch, reported)
                    reported = step
                    self._report(epoch, seen, float(rows[-1].sum()), start)
        self._check_weights(epoch)
        trained = time.perf_counter()
        figures = self._figures(epoch)
        sizes = torch.tensor([len(indices) for indices in batches], dtype=torch.float64)
        means = (torch.stack(rows).cpu().double() * sizes[:, None]).sum(0) / len(self.data)
        return {
            "epoch": epoch,
            "step": epoch * len(batches),
            "loss": float(means.sum()),
            "terms": dict(zip(self.inner.names, means.tolist(), strict=True)),
            "figures": figures,
            "images_per_second": round(len(self.data) / (trained - start), 1),
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _batch(self, images: tuple[Tensor, Tensor], indices: Sequence[int], epoch: int, *, done: float) -> Batch:
        pixels, labels = (part.to(self.device) for part in images)
        generator = SampleGenerator(self._seed("noise", epoch), indices)
        return Batch(
            pixels=pixels,
            labels=labels,
            generator=generator,
            lasting=SampleGenerator(self._seed("noise", 0), indices),
            indices=indices,
            classifier=self.classifier,
            done=done,
        )

    def _figures(self, epoch: int) -> dict[str, float]:
        """The log's figures about the purifier as it would be saved now."""
        result = self.follower.result
        assert isinstance(result, Purifier)
        spread = self.data.spread(WATCHED)
        parts = [spread[start : start + self.batch_size] for start in range(0, len(spread), self.batch_size)]
        batches = (self._batch(self.data.batch(part), part, epoch, done=epoch / self.epochs) for part in parts)
        training = result.training
        try:
            with self.follower.settings.autocast(self.device), _explained(epoch):
                watched = self.recipe.watch(result.eval(), batches)
        finally:
            result.train(training)
        return watched | (result.figures() if isinstance(result, Scheduled) else {})

    def _report(self, epoch: int, seen: int, loss: float, start: float) -> None:
        if self.progress is not None and self.processes.rank == 0:
            self.progress(
                Progress(
                    epoch=epoch,
                    epochs=self.epochs,
                    images=(epoch - 1) * len(self.data) + seen,
                    total=self.epochs * len(self.data),
                    loss=loss,
                    images_per_second=seen / (time.perf_counter() - start),
                )
            )

    def _check_weights(self, epoch: int) -> None:
        for name, value in self.purifier.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NotFinite(f"weights {name!r} became NaN or infinite in epoch {epoch}")
        for weight in self.follower.weights:
            if not all(value.isfinite().all() for value in self.follower.moments(weight).values()):
                raise NotFinite(f"the optimizer's state became NaN or infinite in epoch {epoch}")

    def _seed(self, what: str, epoch: int) -> int:
        return mix_seed(self.seed, what, epoch)


def out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or the CPU."""
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(problem)


def explains_itself(problem: BaseException) -> bool:
    """Whether training handles an exception as it is: one of our errors, or out of memory."""
    return isinstance(problem, PurifierError | NotFinite) or out_of_memory(problem)


def _explained(epoch: int) -> AbstractContextManager[None]:
    """Turn exceptions of the purifier and classifier into a ``TrainingError``."""
    return explained(
        f"purifier or classifier failed in epoch {epoch}", TrainingError, "fix it", passing=explains_itself
    )


def _check_finite(rows: Sequence[Tensor], names: Sequence[str], epoch: int, steps_before: int) -> None:
    stacked = torch.stack(list(rows))
    bad = (~stacked.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        step = steps_before + bad[0] + 1
        values = (f"{name} {value:g}" for name, value in zip(names, stacked[bad[0]].tolist(), strict=True))
        found = f"the loss is not finite at epoch {epoch}, step {step} ({', '.join(values)})"
        if epoch == step == 1:
            raise TrainingError(
                f"{found}, before anything was learned: lower the weight of that term, or fix what computes it"
            )
        raise NotFinite(found)


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Split ``order`` into batches; one left-over image joins the last batch, because BatchNorm needs two or more."""
    start = 0
    while start < len(order):
        stop = start + size
        if stop == len(order) - 1 and size > 1:
            stop += 1
        yield order[start:stop]
        start = stop
