"""Which audit it is: what is known before anything is attacked, as a journal keeps it and a report says it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..attacking.attack import Attack
from ..attacking.specs import NamedAttack
from ..attacking.threat import Threat
from ..foreign_code import Attempt, is_foreign
from ..vocabulary import Needs, Route
from .plan import Job
from .report import Model


@dataclass(frozen=True)
class Identity:
    """What tells an audit from another, and all that its report needs besides results."""

    facts: Mapping[str, Any]
    """The fields of the report that are known before the audit, as JSON."""
    jobs: Sequence[Job]
    models: Sequence[Model]
    routes: Mapping[Model, Route]
    """For each model the route of gradients on which it hides nothing from attacks."""
    differentiable: bool
    """Whether the classifier gives gradients."""
    marks: bool
    """Whether the audited model marks images as rejected."""
    random: bool
    """Whether the purifier draws noise."""
    total: int
    """The number of images of the data."""
    span: range
    """The positions of the images that are audited: all, or a shard."""
    keeps_adversarial: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)
    """How the classifier is asked: which ``input``, and what else it is fed."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the structure of classifier and purifier, and of the purifier's weights and buffers."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Class -> SHA-256 of the file that defines it, or the version of its package, of all attacks and layers that are
    neither of this project nor of torch."""

    @property
    def model(self) -> Model:
        """The model that the audit is about."""
        return "guarded" if "guarded" in self.models else "undefended"

    @property
    def whole(self) -> bool:
        """Whether all images are audited."""
        return len(self.span) == self.total

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {**found, "span": [self.span.start, self.span.stop], "jobs": [_job_values(job) for job in self.jobs]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Identity:
        """From what ``to_json`` gave; the attacks cannot be run."""
        jobs = [_job(one) for one in found["jobs"]]
        return cls(**{**found, "jobs": jobs, "span": range(*found["span"])})


def code_of(things: Iterable[object]) -> dict[str, str]:
    """Class -> SHA-256 of the file that defines it, for the classes of things and their bases; library -> version."""
    found: dict[str, str] = {}
    classes = {cls for thing in things for cls in type(thing).__mro__ if is_foreign(cls.__module__)}
    for cls in sorted(classes, key=lambda one: (one.__module__, one.__qualname__)):
        package = cls.__module__.partition(".")[0]
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is not None:
            found[package] = str(version)
            continue
        with Attempt():  # a class made in an interactive session has no file
            content = Path(inspect.getfile(cls)).read_bytes()
            found[f"{cls.__module__}.{cls.__qualname__}"] = hashlib.sha256(content).hexdigest()
    return found


@dataclass(frozen=True)
class _Recorded(Attack):
    """What is known of an attack that ran in another process."""

    needs: ClassVar[Needs] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ()
    options: Mapping[str, Any]

    def perturb(self, target: object, pixels: Tensor, labels: Tensor, threat: Threat, generator: object) -> Tensor:
        raise NotImplementedError("a record of an attack cannot run")


def _job_values(job: Job) -> dict[str, Any]:
    return {
        "spec": job.named.spec,
        "options": job.named.options,
        "needs": job.named.attack.needs,
        "threat": dataclasses.asdict(job.threat),
        **{name: getattr(job, name) for name in ("route", "model", "sequence", "eot")},
    }


def _job(values: Mapping[str, Any]) -> Job:
    recorded = type(f"Recorded_{values['needs']}", (_Recorded,), {"needs": values["needs"]})(values["options"])
    names = ("route", "model", "sequence", "eot")
    return Job(
        NamedAttack(values["spec"], recorded), Threat(**values["threat"]), **{name: values[name] for name in names}
    )
