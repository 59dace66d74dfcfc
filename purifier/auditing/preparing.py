"""What an audit does before anything is attacked: read what it was given, check that it fits, and plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from onnx import ModelProto
from torch import nn

from ..attacking.attack import Attack
from ..attacking.threat import Threat
from ..classifiers.own_answers import with_own_answers
from ..data.given import Data, check_data, read_data
from ..data.images import ImageData
from ..errors import ConfigError
from ..guards.guard import Guard
from ..rejection.calibration import Calibration, calibration_of
from ..torch_tools.freezing import freeze
from ..torch_tools.process_settings import kept_settings
from ..torch_tools.torchrun import Processes, own_device
from ..vocabulary import Norm, OutputKind
from .fitting import fitting_batch
from .memory_check import Weights
from .parts import AuditedParts, audited_parts
from .plan import Job, plan, plan_preset
from .preflight import check_fit
from .presets import DEFAULT_PRESET, preset_of
from .proofs import NO_PROOFS, Proofs, proofs_for
from .setup import AuditSetup

ALONE = Processes()
Audited = Guard | nn.Module | ModelProto | str | Path
"""A guard, or a classifier to audit alone."""


@dataclass(frozen=True)
class Request:
    """What is asked of an audit; the fields are the parameters of ``audit``."""

    norm: Norm = "linf"
    eps: float | Sequence[float] = 0.1
    attacks: Sequence[str | Attack] | None = None
    preset: str | None = None
    routes: Sequence[str] | None = None
    batch_size: int | None = None
    seed: int = 0
    eot: int = 10
    judgements: int = 5
    probes: int = 1
    device: str | torch.device | None = None
    root: str | Path | None = None
    preprocessing: Any = None
    input: int | str | None = None
    output: int | str | None = None
    output_kind: OutputKind = "logits"
    feed: Mapping[str, Any] | None = None

    def check(self, data: object) -> None:
        """Raise for arguments that are wrong whatever the guard is."""
        check_data(data)
        counts = {name: getattr(self, name) for name in ("batch_size", "eot", "judgements", "probes")}
        for name, value in counts.items():
            if name == "batch_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class Prepared:
    """An audit that has attacked nothing yet."""

    parts: AuditedParts
    setup: AuditSetup
    data: ImageData
    threats: Sequence[Threat]
    jobs: Sequence[Job]
    preset: str | None
    left_out: Sequence[str]
    random: bool
    """Whether the purifier draws noise."""
    calibration: Calibration | None
    request: Request
    weights: Weights
    """What classifier and purifier held before anything asked them."""
    proofs: Proofs = NO_PROOFS


def prepare(
    stack: ExitStack,
    guard: Audited,
    data: Data,
    request: Request,
    processes: Processes = ALONE,
    earlier_batch_size: int | None = None,
) -> Prepared:
    """Read, check and plan; until ``stack`` closes, classifier and purifier are frozen on the audit's device.

    All ``processes`` of torchrun take the same batch size. ``earlier_batch_size`` is that of an audit that was cut off,
    and goes on.
    """
    request.check(data)
    threats = [Threat(request.norm, budget) for budget in budgets_of(request.eps)]
    given, preset = _chosen_attacks(request.attacks, request.preset)
    names = ("preprocessing", "input", "output", "output_kind", "feed")
    parts = audited_parts(guard, **{name: getattr(request, name) for name in names})
    classifier, purifier = parts.classifier, parts.purifier
    calibration, routes = calibration_of(purifier), request.routes
    jobs = plan(classifier, parts.in_front, given, threats, routes, calibrated=parts.rejection.threshold is not None)
    loaded = read_data(data, root=request.root, preprocessing=classifier.preprocessing)
    stack.enter_context(kept_settings())
    device = stack.enter_context(freeze(classifier, purifier, device=_device_of_process(request.device)))
    _ = classifier.differentiable  # an ONNX classifier gets its weights in torch now, before they are noted
    setup = parts.setup(device, seed=request.seed)
    weights = Weights(classifier=classifier, purifier=purifier)
    random = check_fit(classifier, purifier, loaded, device)
    batch_size = request.batch_size or earlier_batch_size or fitting_batch(setup, loaded)
    setup = replace(setup, batch_size=-int(processes.largest([-batch_size], torch.device("cpu"))[0]))
    loaded = with_own_answers(loaded, setup.answers, setup.batch_size, device)
    if random:
        setup = replace(setup, eot=request.eot, judgements=request.judgements)
    jobs, left_out = _with_preset(parts, jobs, preset, threats, routes, random=random)
    return Prepared(parts, setup, loaded, threats, jobs, preset, left_out, random, calibration, request, weights)


def with_proofs(ready: Prepared) -> Prepared:
    """The same with what the purifier's bounds can prove, and with why they cannot prove the rest."""
    proofs, reasons = proofs_for(ready.parts, ready.setup, ready.data.shape, ready.threats, random=ready.random)
    return replace(ready, proofs=proofs, left_out=[*ready.left_out, *reasons])


def _device_of_process(device: str | torch.device | None) -> str | torch.device | None:
    return own_device(device) if device is not None and "LOCAL_RANK" in os.environ else device


def _with_preset(
    parts: AuditedParts,
    given: list[Job],
    preset: str | None,
    threats: Sequence[Threat],
    routes: Sequence[str] | None,
    *,
    random: bool,
) -> tuple[list[Job], list[str]]:
    """The jobs of a preset, followed by the given ones; and what the preset leaves out for this model."""
    if preset is None:
        return given, []
    kind = {"random": random, "rejecting": parts.rejection.active}
    jobs, left_out = plan_preset(parts.classifier, parts.in_front, preset_of(preset), threats, routes, **kind)
    duplicates = {job.named.spec for job in jobs} & {job.named.spec for job in given}
    if duplicates:
        raise ConfigError(f"attack {min(duplicates)!r} is already in the preset {preset!r}; leave it out")
    return [*jobs, *given], left_out


def _chosen_attacks(
    attacks: Sequence[str | Attack] | None, preset: str | None
) -> tuple[Sequence[str | Attack], str | None]:
    """The attacks and the preset to run; the default preset if no attacks are given."""
    if preset is not None:
        preset_of(preset)  # an unknown one is an error at once
    if attacks is None:
        return (), DEFAULT_PRESET if preset is None else preset
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        raise ConfigError(f"attacks: expected a list of ATTACK specs, got {attacks!r}; write [{attacks!r}]")
    return attacks, preset


def budgets_of(eps: float | Sequence[float]) -> list[float]:
    """One budget or several as a list; raises ``ConfigError`` unless they are different numbers."""
    try:
        budgets = [float(eps)] if isinstance(eps, SupportsFloat) else [float(one) for one in eps]
    except (TypeError, ValueError):
        budgets = []
    if not budgets or len(set(budgets)) < len(budgets):
        raise ConfigError(f"eps: expected one or more different budgets, got {eps!r}")
    return budgets
