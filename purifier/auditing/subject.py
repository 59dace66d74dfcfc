"""What an audit judges: a guard, or a classifier alone, asked as its user asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..answering import draw, purifier_input
from ..classifiers.pixel_classifier import OnnxPixelClassifier, PixelClassifier
from ..contracts.purifier import Purifier, check_scores
from ..errors import RejectedError
from ..guards.module import GuardedModule
from ..guards.session import GuardedSession
from ..onnx.labels import as_tensors
from ..onnx.names import REJECTED, SCORE
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from ..torch_tools.copying import unused_copy

NO_ANSWER = -1
"""Stands for the class where there is no answer."""


class Given(NamedTuple):
    """A subject's answers to n images."""

    logits: Tensor
    """(n, K); NaN for images that get no answer."""
    rejected: Tensor | None
    """Which images are marked as rejected, bool (n,); None if the subject marks none."""

    @property
    def answers(self) -> Tensor:
        """The class of each image, (n,) int64; -1 where there is no answer."""
        return self.logits.argmax(1).masked_fill(self.logits.isnan().any(1), NO_ANSWER)

    def right(self, labels: Tensor) -> Tensor:
        """Which images are answered correctly and not rejected, bool (n,); NaN logits never are."""
        right = (self.logits.argmax(1) == labels) & ~self.logits.isnan().any(1)
        return right if self.rejected is None else right & ~self.rejected

    def said(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each image the class answered, int64; its margin, the true class's logit minus the largest other; and
        the softmax of the class answered, both float32. All (n,); -1 and NaN where there is no answer."""
        logits, answers = self.logits.float(), self.answers
        none = answers == NO_ANSWER
        true = logits.new_full((len(logits),), torch.nan)
        known = labels < logits.shape[1]  # images without an answer may have a single column
        true[known] = logits[known].gather(1, labels[known, None]).squeeze(1)
        others = torch.arange(logits.shape[1], device=logits.device) != labels[:, None]
        largest = logits.masked_fill(~others, -torch.inf).amax(1)
        confidences = logits.softmax(1).amax(1)
        return answers, (true - largest).masked_fill(none, torch.nan), confidences.masked_fill(none, torch.nan)


class Subject(Protocol):
    """A model under audit. Every question goes to a copy, which keeps no attribute or buffer of another question."""

    marks: bool
    """Whether it marks images as rejected, so that a rejected image is neither right nor wrong."""

    def ask(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        """Its answers for pixels (n, C, H, W), with the noise of ``seed`` for the images at ``indices``."""

    def accepting(self) -> Subject:
        """The same model, where nothing is marked as rejected."""

    def score(self, pixels: Tensor) -> Tensor | None:
        """How unusual it finds each image, float32 (n,); None if it scores no images."""


class ModuleSubject:
    """A torch guard."""

    def __init__(self, guard: GuardedModule) -> None:
        self.marks = guard.rejection.marks
        self._unused = unused_copy(guard)

    def ask(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        try:
            return self._answer(pixels, seed, indices)
        except RejectedError as error:  # of on_reject="raise"; the user then passes the other images again
            rejected: Tensor = error.rejected
        kept = (~rejected).nonzero().squeeze(1)
        if not len(kept):
            return Given(pixels.new_full((len(pixels), 1), torch.nan), rejected)
        # In a smaller batch, a score within rounding of the threshold may be above it.
        others = self.ask(pixels[kept], seed, [indices[at] for at in kept.tolist()])
        assert others.rejected is not None
        logits = others.logits.new_full((len(pixels), others.logits.shape[1]), torch.nan)
        return Given(logits.index_copy(0, kept, others.logits), rejected.index_copy(0, kept, others.rejected))

    def accepting(self) -> ModuleSubject:
        guard = unused_copy(self._unused)
        guard.rejection = Rejection(threshold=guard.rejection.threshold)
        return ModuleSubject(guard)

    def score(self, pixels: Tensor) -> Tensor:
        return _score(unused_copy(self._unused.purifier), pixels)

    def _answer(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        guard = unused_copy(self._unused)
        images = guard.preprocessing.to_classifier(pixels)
        args: tuple[Any, ...] = (images,) if guard.position == 0 else ()
        kwargs = {} if args else {guard.input: images}
        own = guard.pixels(args, kwargs)
        noise = draw(guard.purifier, own, SampleGenerator(seed, indices))
        if noise is not None:
            answered = guard.answer(args, kwargs, own, noise)
            return Given(guard.output.logits(answered.output), answered.rejected if self.marks else None)
        # Without noise nothing has to be fixed, and the guard is called as its user calls it.
        flags = guard.rejection.on_reject == "flag"
        given = guard(*args, **kwargs)
        output = guard.output.find(given[0] if guard.score or flags else given)
        rejected = given[-1] if flags else torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        if guard.rejection.on_reject == "abstain":
            rejected = output.reshape(len(output), -1).isnan().all(1)
        return Given(guard.output.to_logits(output), rejected if self.marks else None)


class SessionSubject:
    """An ONNX guard: its session runs, in the batches that its graph takes."""

    def __init__(self, guard: GuardedSession) -> None:
        self.marks = guard.rejection.marks
        self._guard, self._unused = guard, unused_copy(guard.purifier)

    def ask(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        images = self._guard.preprocessing.to_classifier(pixels).cpu().numpy()
        size = self._guard.image.shape[0] or len(images)
        parts = [self._run(images[start : start + size], size) for start in range(0, len(images), size)]
        width = max(part.logits.shape[1] for part in parts)
        logits = [part.logits.expand(-1, width) for part in parts]  # a part that is rejected as a whole has one column
        rejected = [part.rejected for part in parts if part.rejected is not None]
        return Given(torch.cat(logits).to(pixels.device), torch.cat(rejected).to(pixels.device) if rejected else None)

    def accepting(self) -> Subject:
        return self  # only its gradients would be tried without rejection, and a session has none

    def score(self, pixels: Tensor) -> Tensor:
        return _score(unused_copy(self._unused), pixels)

    def _run(self, images: np.ndarray[Any, Any], size: int) -> Given:
        count = len(images)
        names = [output.name for output in self._guard.get_outputs()]
        padded = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        try:
            values = self._guard.run(None, {self._guard.input: padded})
        except RejectedError as error:
            rejected = torch.from_numpy(error.rejected[:count])
            if not rejected.any():
                rejected[-1] = True  # only its copies, which fill the batch, are rejected
            return self._without(images, rejected, size)
        labels = self._guard.labels
        output = self._guard.output if labels is None else labels.as_logits
        found = as_tensors(dict(zip(names, values, strict=True)), labels, count)
        answers = output.find({name: found[name] for name in found if name not in (SCORE, REJECTED)})
        logits = output.to_logits(answers).float()
        if not self.marks:
            return Given(logits, None)
        if self._guard.rejection.on_reject == "abstain":
            return Given(logits, answers.reshape(count, -1).isnan().all(1))
        return Given(logits, found.get(REJECTED, torch.zeros(count, dtype=torch.bool)))  # raise: it would have

    def _without(self, images: np.ndarray[Any, Any], rejected: Tensor, size: int) -> Given:
        """The answers when the user passes only the images that were not rejected."""
        kept = (~rejected).nonzero().squeeze(1)
        if not len(kept):
            return Given(torch.full((len(images), 1), torch.nan), rejected)
        others = self._run(images[kept.numpy()], size if self._guard.image.shape[0] else len(kept))
        assert others.rejected is not None
        logits = torch.full((len(images), others.logits.shape[1]), torch.nan)
        return Given(logits.index_copy(0, kept, others.logits), rejected.index_copy(0, kept, others.rejected))


class ClassifierSubject:
    """A classifier without a guard. An exported guard that marks images as rejected is taken at its word."""

    def __init__(self, classifier: PixelClassifier) -> None:
        self.marks = isinstance(classifier, OnnxPixelClassifier) and classifier.marks
        # A session keeps nothing, and a copy would hold the weights of its gradients once more.
        self._unused = classifier if isinstance(classifier, OnnxPixelClassifier) else unused_copy(classifier)

    def ask(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Given:
        if isinstance(self._unused, OnnxPixelClassifier):
            verdict = self._unused.verdict(pixels)
            return Given(verdict.logits, verdict.rejected if self.marks else None)
        return Given(unused_copy(self._unused)(pixels), None)

    def accepting(self) -> ClassifierSubject:
        return self

    def score(self, pixels: Tensor) -> None:
        return None


def _score(purifier: Purifier, pixels: Tensor) -> Tensor:
    score = purifier.score(purifier_input(pixels, purifier))
    check_scores(purifier, score, pixels)
    return score.float()
