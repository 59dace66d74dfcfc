"""``purifier audit``: attack a guarded classifier and report the accuracy that remains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..auditing.presets import PROBED
from ..errors import ConfigError, OutputError
from ..foreign_code import Attempt
from ..vocabulary import Norm, OnBadPixels, OnReject, OutputKind
from .audit_request import CLEAN_ONLY, attacks_in, check_request, read_eps
from .completing import attack_names, preset_names, purifier_names
from .console import plain_console, result_console
from .cutting_off import (
    has_journal,
    is_first_process,
    one_writer,
    read_shard,
    save_report,
    say_that_it_goes_on,
    says_how_to_go_on,
)
from .data_options import CLASSES, CROP, MAX_BYTES, NO_LABELS, RESIZE, ROOT, SKIP_BAD, load_data_option
from .guarding import guarded
from .options import (
    FEED,
    INPUT,
    LIMIT,
    MODEL,
    NO_CACHE,
    ON_BAD_PIXELS,
    OUTPUT,
    OUTPUT_KIND,
    PREPROCESSING,
    RANDOM_WEIGHTS,
    WEIGHTS,
    Reading,
    command_line,
    read_feed_option,
    read_input_option,
    read_model_options,
    read_output_option,
    read_preprocessing_option,
)
from .progress import audit_progress

if TYPE_CHECKING:
    from rich.console import Console

    from ..auditing.report import AuditReport

DEFAULT_EPS = ["0.1"]


def audit(
    context: typer.Context,
    classifier: Annotated[str, typer.Option(help=MODEL)],
    purifier: Annotated[
        str,
        typer.Option(
            help="PURIFIER spec: file.safetensors, NAME or NAME:key=value; 'none' audits the classifier alone.",
            autocompletion=purifier_names,
        ),
    ],
    data: Annotated[str, typer.Option(help="DATA spec, such as fashion-mnist:test:1000.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and the files beside it.")],
    weights: Annotated[Path | None, WEIGHTS] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
    classes: Annotated[Path | None, CLASSES] = None,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    max_bytes: Annotated[int | None, MAX_BYTES] = None,
    no_labels: Annotated[bool, NO_LABELS] = False,
    norm: Annotated[Norm, typer.Option(help="Norm in which eps is measured.")] = "linf",
    eps: Annotated[
        list[str], typer.Option(help="Budget in pixel units, such as 0.1 or 8/255; may be repeated.")
    ] = DEFAULT_EPS,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="ATTACK spec to run on all images; may be repeated. 'none' evaluates clean images only.",
            autocompletion=attack_names,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="quick, standard or thorough (default: standard, unless --attack is given).",
            autocompletion=preset_names,
        ),
    ] = None,
    route: Annotated[
        list[str] | None,
        typer.Option(help="exact, bpda, oblivious or none; may be repeated (default: all that apply)."),
    ] = None,
    preprocessing: Annotated[str | None, PREPROCESSING] = None,
    input: Annotated[str | None, INPUT] = None,
    limit: Annotated[list[str] | None, LIMIT] = None,
    on_reject: Annotated[
        OnReject, typer.Option(help="What the guard does with images that score above its calibrated threshold.")
    ] = "ignore",
    abstain: Annotated[
        int | None, typer.Option(help="With --on-reject abstain: the class that rejected images get (default: NaN).")
    ] = None,
    on_bad_pixels: Annotated[OnBadPixels, ON_BAD_PIXELS] = "raise",
    output: Annotated[str | None, OUTPUT] = None,
    output_kind: Annotated[OutputKind, OUTPUT_KIND] = "logits",
    feed: Annotated[list[str] | None, FEED] = None,
    no_cache: Annotated[bool, NO_CACHE] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch (default: 250, or what fits into memory).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    eot: Annotated[int, typer.Option(help="Noise draws per gradient, if the purifier is random.")] = 10,
    judgements: Annotated[int, typer.Option(help="Judgements per image, if the purifier is random.")] = 5,
    probes: Annotated[int, typer.Option(help="Largest number of images used to look for flags.")] = PROBED,
    device: Annotated[str, typer.Option(help="Device to run on: cpu or cuda.")] = "cpu",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE|NAME=SHARE",
            help="Fail if the worst case's 95% interval reaches below this share of images, such as 0.5; or that of "
            "clean images (clean=0.85) or of an attack (pgd=0.65). May be repeated.",
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="File with names to show for the classes, line K from 0 for class K (default: the data's)."),
    ] = None,
    keep_adversarial: Annotated[
        bool, typer.Option("--keep-adversarial", help="Also write all adversarial images, to adversarial.npz.")
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Fail if fewer images are right than in this earlier audit of the same images and threats, clean or "
            "in a worst case (a paired test at 95%).",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --baseline: by how large a share of images the results may be worse (default: 0.02)."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print nothing but errors; the exit code and the files have the result.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print report.json on standard output, and all else on standard error.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier report, and give up another audit's journal."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Audit the K-th of N shares of the images, as for a job array; `purifier report merge` joins them.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Attack nothing: print what would run, and about how long it would take.")
    ] = False,
) -> None:
    """Attack a guarded classifier, or one alone, print the accuracy that remains, and write report.json."""
    from ..auditing.audit import audit as run
    from ..auditing.estimate import estimate
    from ..auditing.preparing import Request
    from ..auditing.report import FILE_NAME
    from .gates import end, read_baseline
    from .plan import print_plan

    _check_dry_run(dry_run, json)
    part = read_shard(shard, gated=bool(fail_under or baseline))
    gates = check_request(attack, preset, out / FILE_NAME, overwrite or dry_run or has_journal(out, part), fail_under)
    threats = [read_eps(text) for text in eps]
    against = read_baseline(baseline, tolerance, norm, threats, attacks_in(attack, preset))
    model, wanted = read_model_options(classifier, weights, random_weights, read_preprocessing_option(preprocessing))
    asked_for, named, fed = read_input_option(input), read_output_option(output), read_feed_option(feed)
    reading = Reading(preprocessing=wanted, input=asked_for, output=named, output_kind=output_kind, feed=fed)
    policy = {"on_reject": on_reject, "abstain": abstain, "on_bad_pixels": on_bad_pixels}
    model, reading = guarded(model, purifier, policy, reading)
    options: dict[str, Any] = {"classes": classes, "preprocessing": wanted, "no_labels": no_labels, "quiet": quiet}
    images = load_data_option(data, root, resize, crop, skip_bad, max_bytes, **options)
    if against is not None:
        against.check_data(images)
    asked: dict[str, Any] = {
        "norm": norm,
        "eps": threats,
        "attacks": [] if attack == [CLEAN_ONLY] else attack or None,
        "preset": preset,
        "routes": route or None,
        "batch_size": batch_size,
        "seed": seed,
        "eot": eot,
        "judgements": judgements,
        "probes": probes,
        "device": device,
        **reading,
    }
    quiet = quiet or not is_first_process()
    console = result_console(quiet=quiet, stderr=json)
    if dry_run:
        print_plan(estimate(model, images, Request(**asked)), console)
        return
    kept: dict[str, Any] = {"class_names": class_names, "keep_adversarial": keep_adversarial, "overwrite": overwrite}
    say_that_it_goes_on(out, part, quiet=quiet)
    with one_writer(out / FILE_NAME):
        with audit_progress(quiet=quiet) as show, says_how_to_go_on(out, quiet=quiet):
            report = run(model, images, **asked, **kept, journal=out, shard=part, progress=show)
        if not is_first_process():
            return
        report = _named(report, command_line(context), classifier, weights)
        with Attempt((OutputError,)) as saving:
            save_report(report, out, part)
    _print(report, console, json=json)  # even if the report cannot be written: it may have taken hours
    if saving.error is not None:
        raise saving.error
    console.print(f"report {out / FILE_NAME}", markup=False, soft_wrap=True)
    if part is None:
        end(report, gates, against, console)


def _check_dry_run(dry_run: bool, json: bool) -> None:
    if dry_run and json:
        raise ConfigError("--dry-run prints a table and no report; leave out --json")


def _named(report: AuditReport, command: list[str], spec: str, weights: Path | None) -> AuditReport:
    """Add the command line, the MODEL spec and the name of the weights file to the report."""
    named = {"spec": spec, "weights_file": None if weights is None else weights.name}
    return dataclasses.replace(report, command=command, classifier={**report.classifier, **named})


def _print(report: AuditReport, console: Console, *, json: bool) -> None:
    from ..auditing.table import print_report

    if json:
        plain_console().out(report.to_json(), end="", highlight=False)
    print_report(report, console)
