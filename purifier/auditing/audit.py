"""audit(): attacks x threats x routes over data, judged on the guard, worst case per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from onnx import ModelProto
from torch import nn

from ..atomic import check_writable
from ..attacking.attack import Attack
from ..attacking.threat import Threat
from ..classifiers.own_answers import with_own_answers
from ..data.folders import read_classes
from ..data.given import Data, check_data, read_data
from ..data.images import ImageData
from ..errors import ConfigError
from ..guards.guard import Guard
from ..rejection.calibration import calibration_of
from ..torch_tools.channels_last import channels_last
from ..torch_tools.freezing import freeze
from ..torch_tools.process_settings import kept_settings
from ..vocabulary import Norm, OutputKind, Route
from .comparing import DECISIVE_JUDGEMENTS, compare
from .counting import PendingRow, finished_rows, worst_cases
from .crafting import changed_by_asking
from .facts import DataDigest, as_json, describe_calibration, describe_classifier, describe_guard, settings_of, versions
from .fitting import fitting_batch
from .keeping import Keeper
from .measured import clean_flags, flags_of_results, stronger_self_checks, weak_attacks
from .memory_check import Answers, Weights, flags_of_memory
from .parts import AuditedParts, audited_parts
from .plan import Job, plan, plan_preset
from .preflight import FIRST_IMAGES, check_fit, everything_asked
from .presets import DEFAULT_PRESET, PROBED, preset_of
from .probing import probe
from .report import AuditReport, Flag, Model, WorstCase
from .running import run_jobs
from .self_checks import SelfChecks, self_check
from .setup import AuditSetup
from .watching import Progress


def audit(
    guard: Guard | nn.Module | ModelProto | str | Path,
    data: Data,
    *,
    norm: Norm = "linf",
    eps: float | Sequence[float] = 0.1,
    attacks: Sequence[str | Attack] | None = None,
    preset: str | None = None,
    routes: Sequence[str] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    eot: int = 10,
    judgements: int = 5,
    probes: int = PROBED,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    feed: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    keep_adversarial: bool = False,
    out: str | Path | None = None,
) -> AuditReport:
    """Attack a guarded classifier and the classifier alone, and measure the accuracy that remains.

    The core projects every adversarial image into the threat, and the guard itself judges it, as its user would ask it:
    rejection included, with fresh noise if the purifier is random, and by a copy that keeps nothing of other questions.
    An image is right under an attack only if it is also right when clean. If the guard marks images as rejected, clean
    images must be right and accepted, and under attack a rejected image counts like a right one. Classifier and
    purifier are not changed: they run in evaluation mode, and their own modes are restored. Every image judged on the
    guard is also scored. Each row's ``detection`` says how well the score separates fooled images from clean ones and,
    if the purifier is calibrated, how many images the threshold rejects.

    Parameters
    ----------
    guard
        A guard, as returned by ``purifier.guard``; or a classifier to audit alone, without a purifier: a torch module,
        an ONNX model or a MODEL spec.
    data
        A DATA spec, ``ImageData``, images, ``(images, labels)``, a torch Dataset or a DataLoader. Images without
        labels are audited for agreement: their labels are the undefended classifier's answers to the clean images, and
        no figure is an accuracy.
    norm, eps
        The threats: one norm, and one or more budgets in pixel units.
    attacks
        ATTACK specs (``pgd:steps=100``) or attacks, each run on all images; ``()`` evaluates clean images only.
    preset
        ``quick`` runs each of its attacks on all images. ``standard`` (AutoAttack's four attacks, Croce & Hein 2020)
        and ``thorough`` run attacks in sequence, each on the images that the previous ones left right. Attacks that
        cannot run here are left out. By default ``standard`` if ``attacks`` is not given.
    routes
        Any of ``exact``, ``bpda``, ``oblivious``, ``none``; by default all that an attack can follow.
    batch_size
        Images per batch; by default 250, or what fits into memory. The result does not depend on it, except for
        rounding.
    seed
        Random seed of the attacks and the purifier.
    eot
        Number of noise draws a gradient is averaged over; 1 if the purifier is deterministic.
    judgements
        How often each image is judged, with fresh noise each time; 1 if the purifier is deterministic.
    probes
        Largest number of images used to look for flags. Each costs about 60 gradients per threat, times ``eot``. Fewer
        images show less; with fewer than 6, ``one-step-wins`` and ``no-rise`` cannot be raised.
    device
        Where to run; by default where the purifier and classifier are.
    root
        Folder that holds the named data sets.
    preprocessing, input, output, output_kind, feed
        For a classifier alone: as for ``purifier.guard``.
    progress
        Called with the steps done, the steps in total, and in words what is running: before each step, several times
        a second while an attack runs, when the steps done may be a fraction, and once all are done. The words are such
        as "pgd exact linf 0.1, 37 of 60 images, right so far: 92.0% clean, 41.0% worst case", where 37 is the number
        of images that the attack asked about last. If it raises an exception, the audit ends with it.
    class_names
        The names of the classes in the order of the labels, or a file with one per line; by default the data's own.
    keep_adversarial
        Whether to keep all adversarial images, in ``report.details.adversarial`` and ``adversarial.npz``. They are held
        in memory until the end.
    out
        Folder for ``report.json``, ``results.npz`` (each image's results) and ``examples.npz`` (a few images); checked
        before the audit starts.

    Raises
    ------
    ConfigError, SpecError, DataError, OutputError, CheckpointError
        The audit cannot run as requested; raised before any attack runs.
    GradientError
        A gradient attack was requested on a classifier without gradients, or along a route that does not exist.
    AuditError, PluginError
        Classifier, purifier and data do not fit together. An attack that fails is an error of its row only.
    """
    counts = {"eot": eot, "judgements": judgements, "probes": probes}
    _check_arguments(data, counts if batch_size is None else {"batch_size": batch_size, **counts}, out)
    threats = [Threat(norm, budget) for budget in _budgets(eps)]
    named = None if class_names is None else read_classes(class_names)
    given, preset = _chosen_attacks(attacks, preset)
    reading = {"preprocessing": preprocessing, "input": input, "output": output, "output_kind": output_kind}
    parts = audited_parts(guard, **reading, feed=feed)
    classifier, purifier = parts.classifier, parts.purifier
    calibration = calibration_of(purifier)
    jobs = plan(classifier, parts.in_front, given, threats, routes, calibrated=parts.rejection.threshold is not None)
    loaded = read_data(data, root=root, preprocessing=classifier.preprocessing)
    with ExitStack() as stack:
        stack.enter_context(kept_settings())
        run_device = stack.enter_context(freeze(classifier, purifier, device=device))
        setup = parts.setup(run_device, seed=seed)
        weights = Weights(classifier=classifier, purifier=purifier)
        random = check_fit(classifier, purifier, loaded, run_device)
        setup = replace(setup, batch_size=fitting_batch(setup, loaded) if batch_size is None else batch_size)
        loaded = with_own_answers(loaded, setup.answers, setup.batch_size, run_device)
        if random:
            setup = replace(setup, eot=eot, judgements=judgements)
        jobs, left_out = _with_preset(parts, jobs, preset, threats, routes, random=random)
        flags = probe(lambda: flags_of_memory(setup, loaded, threats, count=probes)) if jobs else []
        _lay_out(stack, setup, loaded)
        about = DataDigest(loaded)
        answers = Answers(setup, loaded) if jobs else None
        keeper = Keeper(keep_adversarial)
        rows = run_jobs(setup, loaded, jobs, about, progress, keeper)
        cases = worst_cases(rows, parts.routes, setup.judgements, setup.eot)
        checks = self_check(setup, loaded, threats, count=probes) if jobs else None
        if checks is None or answers is None:
            flags = clean_flags(setup, loaded, rows)
        else:
            decisive = not random or judgements >= DECISIVE_JUDGEMENTS
            flags += _flags_of_run(setup, loaded, rows, cases, checks, parts.routes, decisive=decisive)
            flags += dict.fromkeys([*answers.flags(), *weights.flags()])
        created, found = datetime.now(UTC).isoformat(timespec="seconds"), about.facts()
        details = keeper.details(setup, rows, loaded.labels, {"created": created, "data_sha256": found["sha256"]})
    report = AuditReport(
        created=created,
        versions=versions(jobs),
        data=found,
        classifier=describe_classifier(classifier),
        preprocessing=as_json(classifier.preprocessing),
        **describe_guard(parts, random=random),
        threats=threats,
        **settings_of(setup),
        preset=preset,
        left_out=left_out,
        flags=flags,
        worst_case=cases,
        calibration=describe_calibration(calibration),
        probes=probes,
        gradient_check=None if checks is None else checks.gradient_check,
        rows=finished_rows(rows, calibration, setup.judgements, setup.eot),
        class_names=list(named or loaded.classes) or None,
        details=details,
    )
    if out is not None:
        report.save(out)
    return report


def _lay_out(stack: ExitStack, setup: AuditSetup, data: ImageData) -> None:
    """Note what the modules change themselves when asked, and lay them out channels-last where that changes nothing."""
    sample = data.batch(range(min(FIRST_IMAGES, len(data))))[0].to(setup.device)
    classifier, purifier = setup.classifier, setup.purifier
    setup.state.own = changed_by_asking(setup, sample)
    stack.enter_context(channels_last(classifier, lambda pixels: [classifier(pixels)], sample))
    stack.enter_context(channels_last(purifier, everything_asked(purifier), sample))


def _flags_of_run(
    setup: AuditSetup,
    data: ImageData,
    rows: Sequence[PendingRow],
    cases: Sequence[WorstCase],
    checks: SelfChecks,
    strongest: Mapping[Model, Route],
    *,
    decisive: bool,
) -> list[Flag]:
    """The flags of the self-checks, and those of the rows as a whole; ``decisive`` as for ``compare``."""
    return [
        *checks.flags,
        *flags_of_results(rows, data, setup.model, marks=setup.rejection.marks),
        *stronger_self_checks(rows, checks.attacked, setup.model, setup.eot),
        *weak_attacks(rows, cases, setup),
        *compare(rows, strongest, decisive=decisive),
    ]


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


def _check_arguments(data: object, counts: Mapping[str, object], out: str | Path | None) -> None:
    if out is not None:
        check_writable(out)
    check_data(data)
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


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


def _budgets(eps: float | Sequence[float]) -> list[float]:
    try:
        budgets = [float(eps)] if isinstance(eps, SupportsFloat) else [float(one) for one in eps]
    except (TypeError, ValueError):
        budgets = []
    if not budgets or len(set(budgets)) < len(budgets):
        raise ConfigError(f"eps: expected one or more different budgets, got {eps!r}")
    return budgets
