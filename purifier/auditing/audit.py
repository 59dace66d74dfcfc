"""audit(): attacks x threats x routes over data, judged on the guard, worst case per image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_writable
from ..attacking.attack import Attack
from ..data.folders import read_classes
from ..data.given import Data
from ..data.images import ImageData
from ..errors import ConfigError, OutputError
from ..interrupts import ENDS, described, held
from ..torch_tools.channels_last import channels_last
from ..torch_tools.torchrun import Processes, join_processes
from ..vocabulary import Norm, OutputKind
from .closing import Checked, report_of
from .crafting import changed_by_asking
from .data_digest import DataDigest
from .facts import identify
from .identity import Identity
from .journal import CHECKS, POOL, Journal, batch_size_in, opened
from .keeping import Purify, purified_by
from .likely_causes import flags_of_set_up
from .memory_check import Answers, flags_of_memory
from .preflight import FIRST_IMAGES, everything_asked
from .preparing import Audited, Prepared, Request, prepare, with_proofs
from .presets import PROBED
from .probing import probe
from .report import AuditReport
from .running import run_jobs
from .self_checks import self_check
from .setup import AuditSetup
from .shards import (
    check_shard,
    has_whole_report,
    journal_names,
    merge_journals,
    pool_record,
    refuse_others,
    remove_journals,
    replay,
    span_of,
)
from .tally import Tally
from .watching import Progress, Watch

LONGEST_WAIT = timedelta(days=30)
"""How long the processes of torchrun wait for the last one."""


def audit(
    guard: Audited,
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
    journal: str | Path | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
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
    journal
        Folder for ``audit.journal``, by default ``out``. What each attack found is kept there: when an audit was cut
        off, however that happened, the same call goes on with it, and ends with the same report. One that Ctrl-C or a
        signal ends leaves a partial report there, if a batch of images is done. Saving the report in ``out`` removes
        the journal.
    overwrite
        Give up what the journal of another audit has found, or a damaged journal.
    shard
        ``(k, n)`` audits the k-th of n shares of the images, and leaves a partial report, which has no flags and no
        verdict, and its journal; ``merge_audits`` makes one report of all. Under torchrun each process has its share,
        and the first returns the report of all, the others that of their shard.

    Raises
    ------
    ConfigError, SpecError, DataError, OutputError, CheckpointError
        The audit cannot run as requested; raised before any attack runs. ``OutputError`` also if ``out`` has the
        journal of another audit, or the disk is full: what was found until then is kept.
    GradientError
        A gradient attack was requested on a classifier without gradients, or along a route that does not exist.
    AuditError, PluginError
        Classifier, purifier and data do not fit together. An attack that fails is an error of its row only.
    """
    journal = out if journal is None else journal
    processes, shard = _join(shard, out, journal)
    named = None if class_names is None else read_classes(class_names)
    request = Request(
        norm=norm,
        eps=eps,
        attacks=attacks,
        preset=preset,
        routes=routes,
        batch_size=batch_size,
        seed=seed,
        eot=eot,
        judgements=judgements,
        probes=probes,
        device=device,
        root=root,
        preprocessing=preprocessing,
        input=input,
        output=output,
        output_kind=output_kind,
        feed=feed,
    )
    names = journal_names(shard if processes.count == 1 else None, processes.count)
    if journal is not None and processes.rank == 0:
        refuse_others(journal, names, overwrite=overwrite)
    path = None if journal is None else Path(journal, names[processes.rank])
    with ExitStack() as stack:
        ready = prepare(stack, guard, data, request, processes, batch_size_in(path, overwrite=overwrite))
        ready = with_proofs(ready)
        digest = DataDigest(ready.data, ready.setup.batch_size)
        span = span_of(shard, len(ready.data), ready.setup.batch_size)
        about = identify(ready, digest, span, named, keeps_adversarial=keep_adversarial)
        records = stack.enter_context(opened(path, about.to_json(), overwrite=overwrite))
        folder = None if processes.count > 1 else journal
        report = _run(stack, ready, digest, Tally(about), records, progress, folder)
    processes.wait()
    if processes.rank > 0:
        return report
    if processes.count > 1 and journal is not None:
        report = merge_journals([Path(journal, name) for name in names])
    if out is not None:
        report.save(out)
        if journal is not None and report.partial is None:
            remove_journals(journal, names)
    return report


def _join(shard: tuple[int, int] | None, *folders: str | Path | None) -> tuple[Processes, tuple[int, int] | None]:
    """The processes of torchrun, and this one's shard; raise unless files can be written to the folders."""
    check_shard(shard)
    for folder in folders:
        if folder is not None:
            check_writable(folder)
    processes = join_processes(timeout=LONGEST_WAIT)
    if processes.count > 1:
        if shard is not None:
            raise ConfigError("shard: under torchrun each process has its own shard; leave it out")
        shard = (processes.rank + 1, processes.count)
    if shard is not None and folders[-1] is None:
        raise ConfigError("out: expected a folder, because the report is made from the journals of all shards")
    return processes, shard


def _run(
    stack: ExitStack,
    ready: Prepared,
    digest: DataDigest,
    tally: Tally,
    journal: Journal,
    progress: Progress | None,
    folder: str | Path | None,
) -> AuditReport:
    """Attack and check; what is done is saved to ``folder`` if a signal or a full disk ends the audit."""
    setup, data, threats, about = ready.setup, ready.data, ready.threats, tally.about
    leads, count = about.span.start == 0, ready.request.probes  # of several shards the first one runs the self-checks
    before = probe(lambda: flags_of_memory(setup, data, threats, count=count)) if ready.jobs and leads else []
    _lay_out(stack, setup, data)
    answers = Answers(setup, data) if ready.jobs else None
    watch = Watch(progress, ready.jobs, len(about.span), setup.batch_size, setup.eot)
    purify = functools.partial(purified_by, setup)
    try:
        run_jobs(setup, data, digest, tally, watch, journal, ready.proofs)
        checks = self_check(setup, data, threats, count=count) if ready.jobs and leads else None
        if leads and not ready.jobs:
            before = probe(lambda: flags_of_set_up(setup, data))
        after = [] if answers is None else [*answers.flags(), *ready.weights.flags()]
        checked = Checked(before, checks, after)
        if not about.whole:
            tally.keeper.begin()
            journal.write(POOL, pool_record(tally.keeper.pool, purify))
        journal.write(CHECKS, checked.record())
        return report_of(tally, checked, purify, why_partial=None if about.whole else "one shard")
    except (*ENDS, OutputError) as end:
        if folder is not None:
            with held, suppress(OutputError):
                _save_part(about, journal, purify, described(end), folder)
        raise


def _save_part(about: Identity, journal: Journal, purify: Purify, why: str, folder: str | Path) -> None:
    """Save a partial report of the batches that are whole, unless there is none, or there is a report of all images."""
    part = Tally(about)
    replay(part, journal)
    if part.begun and not has_whole_report(folder):
        report_of(part, Checked(), purify, why_partial=why).save(folder)


def _lay_out(stack: ExitStack, setup: AuditSetup, data: ImageData) -> None:
    """Note what the modules change themselves when asked, and lay them out channels-last where that changes nothing."""
    sample = data.batch(range(min(FIRST_IMAGES, len(data))))[0].to(setup.device)
    classifier, purifier = setup.classifier, setup.purifier
    setup.state.own = changed_by_asking(setup, sample)
    stack.enter_context(channels_last(classifier, lambda pixels: [classifier(pixels)], sample))
    stack.enter_context(channels_last(purifier, everything_asked(purifier), sample))
