"""The parts of what an audit is given: a guard, or a classifier alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..attacking.target import strongest_route
from ..classifiers.loading import read_classifier
from ..classifiers.pixel_classifier import OnnxPixelClassifier, PixelClassifier
from ..contracts.purifier import Classifying, Purifier
from ..errors import ConfigError, GradientError
from ..guards.guard import Guard
from ..guards.module import GuardedModule
from ..guards.precision import refuse_double
from ..guards.session import GuardedSession
from ..guards.signature import classifier_alone
from ..output import Output
from ..rejection.policy import Rejection
from ..torch_tools.module_state import ModuleState
from ..vocabulary import OutputKind, Route
from .report import Model
from .setup import AuditSetup, Unpurified
from .subject import ClassifierSubject, ModuleSubject, SessionSubject, Subject


@dataclass(frozen=True)
class AuditedParts:
    """A guard, and what attacks differentiate; without a guard the classifier alone."""

    guard: Guard | None
    classifier: PixelClassifier
    purifier: Purifier
    rejection: Rejection

    @property
    def in_front(self) -> Purifier | None:
        """The purifier; None if the classifier is audited alone."""
        return None if self.guard is None else self.purifier

    @property
    def routes(self) -> Mapping[Model, Route]:
        """For each model the route of gradients on which it hides nothing from attacks."""
        return {
            "guarded": strongest_route(self.classifier, self.purifier),
            "undefended": strongest_route(self.classifier, Unpurified()),
        }

    def setup(
        self, device: torch.device, *, seed: int = 0, eot: int = 1, judgements: int = 1, batch_size: int = 250
    ) -> AuditSetup:
        """The setup of an audit that judges the models as they are now."""
        state = ModuleState(classifier=self.classifier, purifier=self.purifier)
        return AuditSetup(
            self.classifier,
            self.purifier,
            self.rejection,
            self._subjects(),
            device,
            seed,
            eot,
            judgements,
            batch_size,
            state,
        )

    def _subjects(self) -> Mapping[Model, Subject]:
        found: dict[Model, Subject] = {"undefended": ClassifierSubject(self.classifier)}
        if isinstance(self.guard, GuardedModule):
            found["guarded"] = ModuleSubject(self.guard)
        elif self.guard is not None:
            found["guarded"] = SessionSubject(self.guard)
        return found


def audited_parts(
    given: Guard | nn.Module | ModelProto | str | Path,
    *,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    feed: Mapping[str, Any] | None = None,
) -> AuditedParts:
    """The parts of a guard, or of a classifier that is audited alone.

    Raises
    ------
    PurifierError
        The classifier cannot be read, or an option is for a classifier alone and a guard was given.
    """
    if isinstance(given, GuardedModule | GuardedSession):
        options = {"preprocessing": preprocessing, "input": input, "output": output, "feed": feed}
        options["output_kind"] = None if output_kind == "logits" else output_kind
        for name, value in options.items():
            if value is not None:
                raise ConfigError(f"{name}: the guard has its own, got {value!r}; set it in purifier.guard(...)")
        refuse_double(given, "audit")
        # A session's graph has no noise, so a random purifier is replaced by its mean.
        purifier = _mean_of(given.purifier) if isinstance(given, GuardedSession) else given.purifier
        return AuditedParts(given, given.pixel_classifier(), purifier, given.rejection)
    model: Any = given
    if isinstance(given, str | Path):
        model, preprocessing = read_classifier(given, preprocessing=preprocessing)
    if not isinstance(model, nn.Module | ModelProto):
        raise ConfigError(
            "audit: expected a guard, a torch.nn.Module, an onnx.ModelProto or a MODEL spec, got "
            f"{type(model).__name__}; make a guard with purifier.guard(model, purifier)"
        )
    answer = Output(output, output_kind)
    file = str(given) if isinstance(given, str | Path) and isinstance(model, ModelProto) else None
    alone: dict[str, Any] = {"preprocessing": preprocessing, "input": input, "output": answer}
    classifier = classifier_alone(model, **alone, file=file, feed=feed)
    if isinstance(classifier, OnnxPixelClassifier) and (classifier.marks or classifier.scores):
        own = OwnRejection(classifier)
        rejection = Rejection("flag", threshold=own.threshold) if classifier.marks else Rejection()
        return AuditedParts(None, classifier, own, rejection)
    return AuditedParts(None, classifier, Unpurified(), Rejection())


class OwnRejection(Unpurified):
    """No purifier; the score is that of an exported guard, or else 1 for images that it rejects and 0 for others.

    The score has the gradient that torch computes of the guard's graph. A guard that does not give its score has none.
    A conversion, to float64 or to another device, is one of the guard too, which a deep copy has for itself.
    """

    def __init__(self, guard: OnnxPixelClassifier) -> None:
        super().__init__()
        self._guard = (guard,)  # in a tuple, so that it is no submodule
        self._scores = guard.scores and (guard.threshold is not None or not guard.marks)
        self.threshold = guard.threshold if self._scores else 0.5

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OwnRejection:
        self._guard[0]._apply(fn, recurse)
        return self

    def score(self, pixels: Tensor) -> Tensor:
        if self._scores:
            score = self._guard[0].own_score(pixels)
            return score if score.dtype == torch.float64 else score.float()
        if pixels.requires_grad and torch.is_grad_enabled():
            raise GradientError(
                f"{self._guard[0].describe()} rejects images, but does not give its score, so that it has no gradient; "
                "export the guard with its score (--score), or use joint-square, which asks for rejections only"
            )
        rejected = self._guard[0].verdict(pixels).rejected
        assert rejected is not None
        return rejected.float()


def _mean_of(inner: Purifier) -> Purifier:
    """A purifier without its noise, under its author's name: errors name the class of a purifier."""
    if type(inner).draw is Purifier.draw:
        return inner
    declared = {"gradient": inner.gradient, "surrogate_purifies": inner.surrogate_purifies}
    named = type(type(inner).__name__, (_MeanPurifier,), {"Config": object, **declared})
    found: Purifier = named(inner)
    return found


class _MeanPurifier(Purifier):
    Config = object
    gradient = "exact"

    def __init__(self, inner: Purifier) -> None:
        super().__init__(inner.config)
        self.inner, self.provenance = inner, inner.provenance

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.inner.purify(pixels)

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.inner.surrogate(pixels)

    def score(self, pixels: Tensor) -> Tensor:
        return self.inner.score(pixels)

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.purify_and_score(pixels)

    def classify(self, pixels: Tensor) -> Tensor:
        assert isinstance(self.inner, Classifying)  # only asked for with on_reject="reclassify", which checks it
        return self.inner.classify(pixels)
