"""One epoch of training. Its random numbers depend on seed, epoch, step and image index, and on nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier, Scheduled
from ..data.images import ImageData
from ..errors import TrainingError
from ..foreign_code import Attempt, Interrupted
from ..interrupts import Terminated, held
from ..seeding import SampleGenerator, mix_seed
from ..torch_tools.torchrun import Processes
from .augmentation import augmented
from .check import PART, check, is_checked, watched
from .failures import NotFinite, check_finite, explained_in
from .optimisation import Follower
from .progress import Reporter
from .recipe import Batch, Recipe
from .saving import Saver
from .state import Within


class _ProgressFailed(Interrupted):
    """Carries what the caller's ``progress`` raised through the recipe's and plugins' code."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


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
        reporter: Reporter,
        saver: Saver,
    ) -> None:
        self.recipe, self.purifier, self.follower, self.data = recipe, purifier, follower, data
        self.classifier, self.processes, self.device = classifier, processes, device
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.reporter, self.saver = reporter, saver
        self.inner = _Step(recipe, purifier)
        self.step = processes.wrapped(self.inner, device)
        self.within: Within | None = None
        """How far the epoch in progress is; None between two epochs."""
        self._is_whole = True
        """Whether the weights are those of ``within``, so not in the middle of an update."""
        self._buffers: dict[str, Tensor] = {}
        """The purifier's buffers before the step in progress, which changes them."""
        self._summed = 0
        """How many rows of ``within`` are sums over all processes."""

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return len(list(_batches(range(len(self.data)), self.batch_size)))

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch, counted from 1, from where ``within`` is; return its log entry.

        Raises
        ------
        NotFinite
            The loss, a weight or the optimizer's state became NaN or infinite.
        TrainingError
            The recipe reports that training went wrong, or the purifier or classifier failed.
        """
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self._seed("shuffle", epoch)))
        batches = list(_batches(order.tolist(), self.batch_size))
        start = time.perf_counter()
        # Recipes and purifiers take their randomness from the generator. The seeds here make all else (dropout) the
        # same after a resume, and the fork leaves the caller's own random state unchanged.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            within = self._begin(epoch)
            # Several processes can only stop together, so an interrupt waits until they have agreed.
            with held if self.processes.count > 1 else nullcontext():
                self._train(within, batches)
            self._check_weights(epoch)
            torch.manual_seed(self._seed("check", epoch))
            figures, warnings = self._check(within)
        sizes = torch.tensor([len(indices) for indices in batches], dtype=torch.float64)
        means = (torch.stack(within.rows).cpu().double() * sizes[:, None]).sum(0) / len(self.data)
        return {
            "epoch": epoch,
            "step": epoch * len(batches),
            "loss": float(means.sum()),
            "terms": dict(zip(within.names, means.tolist(), strict=True)),
            "figures": figures,
            **({"warnings": warnings} if warnings else {}),
            "images_per_second": round(len(self.data) / within.seconds, 1),
            "seconds": round(time.perf_counter() - start, 3),
        }

    def end_epoch(self, entry: dict[str, Any]) -> None:
        """An epoch is over; its log entry belongs to all later states."""
        with held:
            self._is_whole = False
            self.saver.entry, self.within = entry, None
            self._is_whole = True

    def save_interrupted(self) -> None:
        """Save what has been done when an interrupt comes, if the weights are whole."""
        if not self._is_whole or self.processes.count > 1:
            return
        with held:
            for name, buffer in self.purifier.named_buffers():
                if name in self._buffers:
                    buffer.copy_(self._buffers[name])
            if self.within is not None:
                try:
                    self._read_loss(self.within)
                    self._check_weights(self.within.epoch)
                except (NotFinite, TrainingError):
                    return
            self.saver.write(self.within)

    def _begin(self, epoch: int) -> Within:
        """Begin an epoch, or go on with the one that a state left off in."""
        torch.manual_seed(self._seed("layers", epoch))
        resumed = self.within
        self._is_whole = False
        if isinstance(self.purifier, Scheduled):
            before = copy.deepcopy(self.purifier.state_dict()) if resumed else None
            with explained_in(epoch):
                self.purifier.begin_epoch(epoch, self.epochs, self.data)
            if before is not None:
                self.purifier.load_state_dict(before)
            self.processes.synchronise(self.purifier)
        self.within = resumed or Within(epoch)
        self._summed = self.within.step
        self._is_whole = True
        return self.within

    def _train(self, within: Within, batches: Sequence[Sequence[int]]) -> None:
        """The steps of an epoch that are left."""
        shares = [self.processes.share(indices) for indices in batches[within.step :]]
        self.reporter.start_epoch(within.epoch, sum(len(indices) for indices in batches[: within.step]))
        due, images = within.step + self.reporter.steps, 0
        for (own, weight), loaded in zip(shares, self.data.batches([own for own, _ in shares]), strict=True):
            done = ((within.epoch - 1) * len(batches) + within.step) / (self.epochs * len(batches))
            self._take_step(within, self._batch(loaded, own, within.epoch, done=done), weight)
            images += len(batches[within.step - 1])
            if within.step >= due or within.step == len(batches):
                self._report(within, images)
                due, images = within.step + self.reporter.steps, 0

    def _take_step(self, within: Within, batch: Batch, weight: float) -> None:
        torch.manual_seed(self._seed("layers", within.epoch, within.step + 1))
        self._buffers = {name: buffer.clone() for name, buffer in self.purifier.named_buffers()}
        pixels = augmented(batch.pixels, batch.generator, self.follower.settings.augment)
        with self.follower.settings.autocast(self.device), explained_in(within.epoch):
            row = self.step(replace(batch, pixels=pixels))
        with explained_in(within.epoch):
            self.follower.backward(row.sum() * (weight * self.processes.count))
        with held:
            self._is_whole = False
            self.follower.update(batch.done)
            within.rows.append(row.detach() * weight)
            within.names = self.inner.names
            within.step += 1
            self._buffers = {}
            self._is_whole = True

    def _report(self, within: Within, images: int) -> None:
        """Read the loss, report it, and save a state if one is due or all processes are to stop."""
        steps = within.step - self._summed
        loss = self._read_loss(within)
        within.seconds += self.reporter.lap(images, steps)
        first = self.processes.rank == 0
        wanted = (held.number, first and self.saver.is_due(), first and self.reporter.steps)
        stopped, due, self.reporter.steps = (int(value) for value in self.processes.largest(wanted, self.device))
        if due or stopped:
            self._check_weights(within.epoch)
            self.saver.write(within)
        if stopped:
            self.processes.wait()
            raise Terminated(stopped)
        self.reporter.trained(loss)
        self.reporter.resume_clock()

    def _read_loss(self, within: Within) -> float:
        """The last step's loss, after a check of all that have not been read."""
        if within.step > self._summed:
            rows = self.processes.summed(torch.stack(within.rows[self._summed :])).unbind()
            check_finite(rows, within.names, within.epoch, self._summed)
            within.rows[self._summed :] = rows
            self._summed = within.step
        return float(within.rows[-1].sum()) if within.rows else 0.0

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

    def _check(self, within: Within) -> tuple[dict[str, float], list[str]]:
        """The log's figures and warnings about the purifier as it would be saved now."""
        result, epoch = self.follower.result, within.epoch
        assert isinstance(result, Purifier)
        figures: dict[str, float] = {}
        warnings: list[str] = []
        if is_checked(epoch, self.epochs, len(self.data)):
            # An interrupted check can be repeated, the epoch before it only at its full price.
            if self.saver.is_due_before_check():
                self.saver.write(within)
            start, spread = time.perf_counter(), self.data.spread(watched(len(self.data)))
            part = min(PART, self.batch_size)  # what fits into memory
            parts = [spread[first : first + part] for first in range(0, len(spread), part)]

            def batches() -> Iterator[Batch]:
                return (self._batch(self.data.batch(part), part, epoch, done=epoch / self.epochs) for part in parts)

            def tell(checked: int) -> None:
                with Attempt() as attempt:
                    self.reporter.checking(checked, len(spread), time.perf_counter() - start)
                if attempt.error is not None:
                    raise _ProgressFailed(attempt.error)

            training = result.training
            try:
                with self.follower.settings.autocast(self.device), explained_in(epoch):
                    figures, warnings = check(self.recipe, result.eval(), batches, epoch * self.steps, tell)
            except _ProgressFailed as failed:
                raise failed.error from None
            finally:
                result.train(training)
        for warning in warnings:
            self.reporter.warn(warning)
        return figures | (result.figures() if isinstance(result, Scheduled) else {}), warnings

    def _check_weights(self, epoch: int) -> None:
        for name, value in self.purifier.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NotFinite(f"weights {name!r} became NaN or infinite in epoch {epoch}")
        for weight in self.follower.weights:
            if not all(value.isfinite().all() for value in self.follower.moments(weight).values()):
                raise NotFinite(f"the optimizer's state became NaN or infinite in epoch {epoch}")

    def _seed(self, what: str, *at: int) -> int:
        return mix_seed(self.seed, what, *at)


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Split ``order`` into batches; one left-over image joins the last batch, because BatchNorm needs two or more."""
    start = 0
    while start < len(order):
        stop = start + size
        if stop == len(order) - 1 and size > 1:
            stop += 1
        yield order[start:stop]
        start = stop
