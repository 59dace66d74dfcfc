"""``purifier bench``: what a guard costs, each way to run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..errors import OutputError
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

if TYPE_CHECKING:
    from ..timing.report import BenchReport


def bench(
    classifier: Annotated[str, typer.Option(help=MODEL, metavar="MODEL")],
    purifier: Annotated[
        str, typer.Option(help="PURIFIER: file.safetensors, NAME or NAME:key=value,...", metavar="PURIFIER")
    ],
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images per call; may be repeated (default: 1, 8 and 32).")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each way is timed at each batch size.")] = 2.0,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Leave torch.compile out.")] = False,
    weights: Annotated[Path | None, WEIGHTS] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
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
    image_shape: Annotated[str | None, IMAGE_SHAPE] = None,
    device: Annotated[str, typer.Option(help="Device to run on: cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file to write the figures to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of an earlier run.")] = False,
) -> None:
    """Time the classifier alone and the guard in torch, compiled, and in ONNX Runtime, side by side."""
    from torch import nn

    from ..guards.guard import guard
    from ..onnx.runtime import CPU, CUDA
    from ..timing.bench import bench as run
    from ..torch_tools.freezing import freeze

    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give another name, or --overwrite to replace it", out)
    shape = read_image_shape_option(image_shape)
    model, wanted = read_model_options(classifier, weights, random_weights, read_preprocessing_option(preprocessing))
    in_torch = isinstance(model, nn.Module)
    for_onnx: dict[str, Any] = {"image_shape": shape, "providers": [CUDA if device.startswith("cuda") else CPU]}
    guarded = guard(
        model,
        purifier,
        preprocessing=wanted,
        input=read_input_option(input),
        output=read_output_option(output),
        output_kind=output_kind,
        on_reject=on_reject,
        abstain=abstain,
        on_bad_pixels=on_bad_pixels,
        feed=read_feed_option(feed),
        **({} if in_torch else for_onnx),
    )
    console, notes = plain_console(), plain_console(stderr=True)
    parts = [guarded.classifier, guarded.purifier] if in_torch else [guarded.purifier]
    with freeze(*parts, device=device if in_torch else None):
        report = run(
            guarded,
            batch_sizes=batch_size or (1, 8, 32),
            image_shape=shape,
            seconds=seconds,
            compiled=not no_compile,
            progress=lambda what: notes.print(what, markup=False),
        )
    for line in lines_of(report):
        console.print(line, markup=False)
    for size in sorted({timing.batch_size for timing in report.timings}):
        console.print()
        console.print(table_of(report, size))
    for line in ("", *LEGEND):
        console.print(line, markup=False)
    for way, reason in report.missing.items():
        console.print(f"left out: {way} ({reason})", markup=False)
    if out is not None:
        report.save(out)
        console.print(f"figures {out}", markup=False)


def lines_of(report: BenchReport) -> list[str]:
    """What was timed, and on what."""
    machine, shape = report.machine, "x".join(map(str, report.image_shape))
    speed = f"{machine.flops / 1e9:.0f} GFLOP/s in products of matrices, {machine.bandwidth / 1e9:.1f} GB/s"
    return [
        f"classifier {report.classifier}, purifier {report.purifier}, images {shape}",
        f"machine    {machine.device}, {machine.threads} threads, {speed}",
    ]


def table_of(report: BenchReport, size: int) -> Table:
    """A row for each way at one batch size."""
    names = ("p50 ms", "p99 ms", "images/s", "overhead", "matmul", "moving", "memory")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(f"batches of {size}", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    largest = max(timing.batch_size for timing in report.timings)
    for timing in report.timings:
        if timing.batch_size != size:
            continue
        memory = report.memory[f"{timing.what}, {timing.engine}"] if size == largest else None
        table.add_row(
            f"{timing.what}, {timing.engine}",
            f"{timing.p50 * 1e3:.2f}",
            f"{timing.p99 * 1e3:.2f}",
            f"{timing.images_per_second:.4g}",
            "" if timing.overhead is None else f"{timing.overhead:.2f}x",
            *("" if share is None else f"{share:.0%}" for share in (timing.of_matmul_rate, timing.of_bandwidth)),
            "" if memory is None else f"{memory / 1e6:.0f} MB",
        )
    return table


LEGEND = (
    "overhead: time of the guard, divided by that of the classifier alone in the same engine (torch's for compiled)",
    "matmul: share of the machine's rate of matrix products",
    "moving: share of its memory bandwidth if every operator of torch reads and writes all its tensors; engines fuse",
    "memory: how much it grows when such a batch is answered for the first time",
)
