"""``purifier certify``: how large a change of each image provably leaves its answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..atomic import atomic_write
from ..errors import OutputError
from ..vocabulary import Norm, OnBadPixels, OnReject, OutputKind
from .audit_request import read_eps
from .completing import purifier_names
from .console import result_console
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
    from ..certifying.certificates import Certificates

PLOT = "certificates.svg"


def certify(
    context: typer.Context,
    classifier: Annotated[str, typer.Option(help=MODEL)],
    purifier: Annotated[
        str,
        typer.Option(
            help="PURIFIER spec: file.safetensors, NAME or NAME:key=value; 'none' certifies the classifier alone.",
            autocompletion=purifier_names,
        ),
    ],
    data: Annotated[str, typer.Option(help="DATA spec, such as fashion-mnist:test:100.")],
    out: Annotated[Path, typer.Option(help="Folder for certificates.json and certificates.svg.")],
    norm: Annotated[
        Norm | None, typer.Option(help="Norm of the bounds: linf or l2 (default: what the purifier was trained for).")
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(help="Budget to certify by bounds, such as 0.1 or 8/255; repeatable (default: as trained for)."),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(help="Certify by randomised smoothing, with noise of this standard deviation in pixel units."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Noisy copies of each image that bound its radius (default: 1000).")
    ] = None,
    first: Annotated[
        int | None, typer.Option(help="Other copies that find out which answer is certified (default: 100).")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Probability that a certificate does not hold (default: 0.001).")
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(help="Take copies only until it is clear whether this l2 radius is certified (default: all)."),
    ] = None,
    weights: Annotated[Path | None, WEIGHTS] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
    classes: Annotated[Path | None, CLASSES] = None,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    max_bytes: Annotated[int | None, MAX_BYTES] = None,
    no_labels: Annotated[bool, NO_LABELS] = False,
    preprocessing: Annotated[str | None, PREPROCESSING] = None,
    input: Annotated[str | None, INPUT] = None,
    limit: Annotated[list[str] | None, LIMIT] = None,
    output: Annotated[str | None, OUTPUT] = None,
    output_kind: Annotated[OutputKind, OUTPUT_KIND] = "logits",
    feed: Annotated[list[str] | None, FEED] = None,
    on_reject: Annotated[
        OnReject, typer.Option(help="What the guard does with images that score above its calibrated threshold.")
    ] = "ignore",
    abstain: Annotated[
        int | None, typer.Option(help="With --on-reject abstain: the class that rejected images get (default: NaN).")
    ] = None,
    on_bad_pixels: Annotated[OnBadPixels, ON_BAD_PIXELS] = "raise",
    no_cache: Annotated[bool, NO_CACHE] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Noisy copies per call (default: 250, or what fits into memory).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="Device to run on: cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier certificates, and give up another run's journal.")
    ] = False,
) -> None:
    """Prove how large a change of each image leaves its answer: by the purifier's bounds, or by randomised smoothing.

    Nothing is attacked. Bounds need a purifier that has them, such as certified. With --sigma the guard is asked about
    many noisy copies of each image, so any guard will do, ONNX files too; the certificates are then in l2, and the same
    command goes on where it was cut off.
    """
    from ..auditing.report_json import CERTIFICATES as FILE_NAME
    from ..certifying.certify import JOURNAL
    from ..certifying.certify import certify as run
    from ..reporting.certified_plot import certified_plot

    goes_on = sigma is not None and (out / JOURNAL).exists()
    if (out / FILE_NAME).exists() and not (overwrite or goes_on):
        raise OutputError(f"{out / FILE_NAME} exists; replace it by --overwrite, or choose another --out", out)
    noise = None if sigma is None else read_eps(sigma, "--sigma")
    budgets = None if eps is None else [read_eps(text, "--eps") for text in eps]
    model, wanted = read_model_options(classifier, weights, random_weights, read_preprocessing_option(preprocessing))
    named, asked, fed = read_output_option(output), read_input_option(input), read_feed_option(feed)
    reading = Reading(preprocessing=wanted, input=asked, output=named, output_kind=output_kind, feed=fed)
    policy = {"on_reject": on_reject, "abstain": abstain, "on_bad_pixels": on_bad_pixels}
    model, reading = guarded(model, purifier, policy, reading)
    how: dict[str, Any] = {"classes": classes, "preprocessing": wanted, "no_labels": no_labels, "quiet": quiet}
    images = load_data_option(data, root, resize, crop, skip_bad, max_bytes, **how)
    target = None if radius is None else read_eps(radius, "--radius")
    smoothing: dict[str, Any] = {"sigma": noise, "samples": samples, "first": first, "alpha": alpha, "radius": target}
    threat: dict[str, Any] = {"norm": norm, "eps": budgets}
    kept: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "overwrite": overwrite}
    with audit_progress(quiet=quiet) as show:
        found = run(model, images, **smoothing, **threat, **kept, **reading, out=out, progress=show)
    made = dataclasses.replace(
        found, command=command_line(context), classifier={**found.classifier, "spec": classifier}
    )
    made.save(out)
    atomic_write(out / PLOT, certified_plot(made))
    console = result_console(quiet=quiet, stderr=False)
    print_certificates(made, console)
    console.print(f"certificates {out / FILE_NAME}", markup=False, soft_wrap=True)


def print_certificates(made: Certificates, console: Console) -> None:
    """Print the share of images that are right and certified at a few radii."""
    about = f"{made.data['count']} images of {made.data['name']}"
    console.print(
        f"{made.right} and certified, {about}, with 95% interval; {made.norm}, {made.how}", markup=False, soft_wrap=True
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("radius")
    table.add_column("certified", justify="right")
    for radius in made.steps():
        table.add_row(f"{radius:g}", str(made.certified(radius)))
    console.print(table)
    none = f"no answer {made.abstained}; " if made.method == "smoothing" else ""
    console.print(f"{none}largest radius {made.largest_radius:.3g}; mean radius {made.mean_radius:.3g}", markup=False)
    if made.method == "smoothing":
        console.print("the certificates are for the smoothed guard, not for a single answer of the guard", markup=False)
    for note in made.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
