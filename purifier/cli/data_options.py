"""The options that say how a DATA spec is read, shared by all commands that take one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .console import plain_console

if TYPE_CHECKING:
    from ..data.images import ImageData
    from ..data.pixels import Preprocessing

NAMED = 5
"""How many images that were left out are named."""

ROOT = typer.Option("--root", help="Folder that holds the named data sets.")
RESIZE = typer.Option(
    "--resize",
    metavar="N|HxW",
    help="Resize the images of folder:DIR: their shorter side to N pixels, or to height x width.",
)
CROP = typer.Option("--crop", metavar="N|HxW", help="Then cut this from the centre: N x N pixels, or height x width.")
CLASSES = typer.Option(
    "--classes",
    help="File with the classifier's classes: line K from 0 is the name or WordNet id of class K, as the folders in "
    "folder:DIR are called (default: the folders' names in alphabetical order).",
)
SKIP_BAD = typer.Option("--skip-bad", help="Leave out images of folder:DIR that cannot be read, and count them.")
MAX_BYTES = typer.Option(
    "--max-bytes", help="How much the arrays of npz:FILE may hold once decompressed (default: 512 MiB)."
)

NO_LABELS = typer.Option(
    "--no-labels", help="Leave out the labels of the data; the classifier's own answers take their place."
)


def load_data_option(
    spec: str,
    root: Path | None,
    resize: str | None,
    crop: str | None,
    skip_bad: bool,
    max_bytes: int | None,
    *,
    classes: Path | None = None,
    preprocessing: Preprocessing | None = None,
    no_labels: bool = False,
    quiet: bool = False,
) -> ImageData:
    """The data of ``--data``; images that were left out are named on standard error, unless ``quiet``."""
    from ..data.loading import load_data

    found = load_data(
        spec,
        root=root,
        resize=resize,
        crop=crop,
        preprocessing=preprocessing,
        classes=classes,
        skip_bad=skip_bad,
        max_bytes=max_bytes,
        labels=not no_labels,
    )
    if not quiet:
        say_skipped(found.skipped)
    return found


def say_skipped(skipped: Sequence[Path]) -> None:
    """Name images that were left out on standard error."""
    if not skipped:
        return
    more = f", and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    images = "1 image" if len(skipped) == 1 else f"{len(skipped)} images"
    named = ", ".join(map(str, skipped[:NAMED]))
    console = plain_console(stderr=True, soft_wrap=True)
    console.print(f"left out {images} that cannot be read: {named}{more}", markup=False)
