"""``purifier purify``: draw the effect of a purifier on a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len, set_cell_size

from ..atomic import atomic_path
from ..errors import ConfigError
from .console import plain_console
from .data_options import CROP, RESIZE, ROOT


def purify(
    purifier: Annotated[
        str,
        typer.Argument(
            help="file.safetensors, NAME, NAME:key=value,..., or a shipped one such as demo.", metavar="PURIFIER"
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(help="Image files, and DATA specs such as fashion-mnist:test:8.", metavar="IMAGES")
    ],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png file.")],
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
) -> None:
    """Draw each image clean and purified, and their difference, with a score of how unusual the image is."""
    from ..contracts.checkpoint import load
    from ..contracts.purifier import image_shape_of
    from ..pictures import draw_purifications, purify_images, read_images
    from ..rejection.calibration import calibration_of

    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: expected a file ending in .png, got {out}")
    loaded = load(purifier)
    calibration = calibration_of(loaded)
    named = read_images(images, shape=image_shape_of(loaded), root=root, resize=resize, crop=crop)
    with atomic_path(out) as temporary:  # opened before the work, so that a bad path fails at once
        found = purify_images(loaded, named)
        temporary.write_bytes(draw_purifications(found))

    console = plain_console(soft_wrap=True)
    width = max(cell_len(one.name) for one in found)
    for one in found:
        verdict = "" if one.rejected is None else "  rejected" if one.rejected else "  not rejected"
        console.print(f"{set_cell_size(one.name, width)}  {one.score:<10.4g}{verdict}".rstrip(), markup=False)
    if calibration is None:
        console.print("not calibrated: to find a threshold, run `purifier calibrate CKPT --data SPEC --fpr 0.05`")
    else:
        console.print(
            f"rejected: score above {calibration.threshold:.4g}, calibrated on {calibration.data} to a "
            f"false-positive rate of {calibration.fpr:g}",
            markup=False,
        )
    console.print(f"picture {out}", markup=False)
