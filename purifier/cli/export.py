"""``purifier export``: write a purifier and a classifier to one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_type_hints

import typer
from rich.table import Table

from ..specs import converted, split_spec
from ..vocabulary import OnBadPixels, OnReject, OutputKind
from .console import plain_console
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
    format: Annotated[str, typer.Option(help="The exporter to use; `purifier list` shows them.")] = "onnx",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another option of the exporter; may be repeated."),
    ] = None,
) -> None:
    """Write a purifier and a classifier to one file, and verify that it gives the same outputs."""
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
    given = {"image_shape": shape, "noise": noise, "tolerance": tolerance}
    named = {name: value for name, value in given.items() if value is not None}
    options = {**_typed(format, settings or ()), **named}
    report = export_guard(guarded, out, format=format, **options)

    console = plain_console(soft_wrap=True)
    opset = "" if report.opset is None else f", opset {report.opset}"
    console.print(f"{report.path}  {report.size / 1e6:.2f} MB, {report.format}{opset}", markup=False)
    table = Table("batch", "largest relative error")
    for batch, error in report.max_error.items():
        table.add_row(str(batch), f"{error:.1e}")
    console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)


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
