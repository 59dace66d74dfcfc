"""``purifier export``: write a purifier and a classifier to one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer
from rich.table import Table

from ..errors import ConfigError
from ..specs import converted, split_spec
from ..vocabulary import Norm, OnBadPixels, OnReject, OutputKind
from .audit_request import read_eps
from .console import plain_console
from .data_options import CLASSES, CROP, NO_LABELS, RESIZE, ROOT, SKIP_BAD, load_data_option
from .export_card import print_card
from .options import (
    FEED,
    IMAGE_SHAPE,
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
    read_feed_option,
    read_image_shape_option,
    read_input_option,
    read_model_options,
    read_output_option,
    read_preprocessing_option,
)

if TYPE_CHECKING:
    from ..guards.exporter import ExportReport


def export(
    classifier: Annotated[str, typer.Option(help=MODEL, metavar="MODEL")],
    purifier: Annotated[
        str, typer.Option(help="PURIFIER: file.safetensors, NAME or NAME:key=value,...", metavar="PURIFIER")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    weights: Annotated[Path | None, WEIGHTS] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
    preprocessing: Annotated[str | None, PREPROCESSING] = None,
    input: Annotated[str | None, INPUT] = None,
    limit: Annotated[list[str] | None, LIMIT] = None,
    output: Annotated[str | None, OUTPUT] = None,
    output_kind: Annotated[OutputKind, OUTPUT_KIND] = "logits",
    feed: Annotated[list[str] | None, FEED] = None,
    no_cache: Annotated[bool, NO_CACHE] = False,
    image_shape: Annotated[str | None, IMAGE_SHAPE] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Add the outputs purifier_score and purifier_rejected.")
    ] = False,
    on_reject: Annotated[
        str, typer.Option(help="What to do with rejected images: ignore, flag, abstain or reclassify.")
    ] = "ignore",
    abstain: Annotated[
        int | None,
        typer.Option(help="With --on-reject abstain: the class to answer (default: NaN logits).", metavar="CLASS"),
    ] = None,
    on_bad_pixels: Annotated[OnBadPixels, ON_BAD_PIXELS] = "raise",
    noise: Annotated[
        str | None,
        typer.Option(
            help="For a random purifier: use its mean, or make its noise a second input.", metavar="mean|input"
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference from the guard, relative to the output's scale (default: 0.0001)."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|fp16|int8",
            help="Precision of an ONNX file (default: fp32). int8 is calibrated on half of --data, 64 images or more.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Fix the batch size of an ONNX file (default: free).")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="DATA spec, such as fashion-mnist:test:300, of images to judge an ONNX file on: how often it answers "
            "as the guard does, clean, and how often it is right under a white-box attack on the file itself."
        ),
    ] = None,
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
    classes: Annotated[Path | None, CLASSES] = None,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    no_labels: Annotated[bool, NO_LABELS] = False,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Share of --data that guard and file must agree on (default: 0.99; int8: 0.95)."),
    ] = None,
    norm: Annotated[Norm | None, typer.Option(help="Norm of the attack (default: linf).")] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budget of the attack in pixel units, such as 8/255 (default: 0.1).")
    ] = None,
    sample: Annotated[int | None, typer.Option(help="How many images are attacked (default: 50).")] = None,
    format: Annotated[str, typer.Option(help="The exporter to use; `purifier list` shows them.")] = "onnx",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another option of the exporter; may be repeated."),
    ] = None,
) -> None:
    """Write a purifier and a classifier to one file, and verify that it gives the same outputs.

    An ONNX file gets a card beside it, FILE.json. With --data it says what the file is worth, also in half precision
    or 8 bits:

    purifier export --classifier demo --purifier demo --out guarded.onnx

    purifier export --classifier demo --purifier demo --out small.onnx --precision int8 --data fashion-mnist:test:500

    purifier export --classifier net.onnx --purifier p.safetensors --out half.onnx --precision fp16 --batch 8
    """
    from torch import nn

    from ..guards.exporting import check_not_read
    from ..guards.exporting import export as export_guard
    from ..guards.guard import guard

    check_not_read(out, [classifier, weights, purifier])
    wanted, shape = read_preprocessing_option(preprocessing), read_image_shape_option(image_shape)
    model, wanted = read_model_options(classifier, weights, random_weights, wanted)
    guarded = guard(
        model,
        purifier,
        image_shape=None if isinstance(model, nn.Module) else shape,
        preprocessing=wanted,
        input=read_input_option(input),
        output=read_output_option(output),
        output_kind=output_kind,
        score=score,
        on_reject=cast(OnReject, on_reject),
        abstain=abstain,
        on_bad_pixels=on_bad_pixels,
        feed=read_feed_option(feed),
    )
    of_data: dict[str, object] = {
        "--root": root,
        "--resize": resize,
        "--crop": crop,
        "--classes": classes,
        "--skip-bad": skip_bad,
    }
    of_data |= {"--no-labels": no_labels, "--min-agreement": min_agreement}
    of_data |= {"--norm": norm, "--eps": eps, "--sample": sample}
    if data is None:
        _refuse_without_data(of_data)
        images = None
    else:
        how: dict[str, Any] = {"classes": classes, "preprocessing": wanted, "no_labels": no_labels}
        images = load_data_option(data, root, resize, crop, skip_bad, None, **how)
    given = {
        "image_shape": shape,
        "noise": noise,
        "tolerance": tolerance,
        "precision": precision,
        "batch": batch,
        "data": images,
        "min_agreement": min_agreement,
        "norm": norm,
        "eps": None if eps is None else read_eps(eps),
        "sample": sample,
    }
    named = {name: value for name, value in given.items() if value is not None}
    options = {**_typed(format, settings or ()), **named}
    _print(export_guard(guarded, out, format=format, **options))


def _print(report: ExportReport) -> None:
    console = plain_console(soft_wrap=True)
    opset = "" if report.opset is None else f", opset {report.opset}"
    console.print(f"{report.path}  {report.size / 1e6:.2f} MB, {report.format}{opset}", markup=False)
    table = Table("batch", "largest relative error")
    for batch, error in report.max_error.items():
        table.add_row(str(batch), f"{error:.1e}")
    console.print(table)
    if report.card:
        print_card(report.card, console)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)


def _refuse_without_data(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value not in (None, False):
            raise ConfigError(f"{name} needs --data, whose images it is for; give both or leave it out")


def _typed(format: str, settings: Sequence[str]) -> dict[str, object]:
    """The values of ``--set`` as the exporter's types say; unknown options stay as they are."""
    from ..guards.exporter import exporters

    if not settings:
        return {}
    hints, what = get_type_hints(exporters.get(format).export), f"exporter {format!r}"
    return {
        name: converted(value, hints[name], name, what=what) if name in hints else value
        for name, value in split_spec(f"{format}:{','.join(settings)}")[1].items()
    }
