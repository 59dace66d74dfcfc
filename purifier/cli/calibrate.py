"""``purifier calibrate``: find the score above which a purifier rejects images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError
from .console import plain_console
from .data_options import CROP, MAX_BYTES, RESIZE, ROOT, SKIP_BAD, load_data_option
from .progress import audit_progress

SHOWN_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def calibrate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Checkpoint to calibrate; with --out any PURIFIER spec.")
    ],
    data: Annotated[str, typer.Option(help="DATA spec of clean images that the purifier was not trained on.")],
    fpr: Annotated[float, typer.Option(help="Share of clean images that may be rejected.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint to write (default: CKPT itself, with its weights unchanged).")
    ] = None,
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    max_bytes: Annotated[int | None, MAX_BYTES] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 250,
    device: Annotated[str | None, typer.Option(help="Device to run on: cpu or cuda.")] = None,
) -> None:
    """Use clean images to find the score above which images are rejected, and store it in the checkpoint."""
    from ..contracts.checkpoint import annotate, checkpoint_path, load, save
    from ..rejection.calibration import CALIBRATION_KEY
    from ..rejection.calibration import calibrate as run

    path = checkpoint_path(checkpoint)
    if path is None and out is None:
        raise SpecError(
            f"CKPT: expected a checkpoint file, got {checkpoint!r}; name the checkpoint to write with --out", checkpoint
        )
    purifier = load(checkpoint)
    console = plain_console(soft_wrap=True)
    images = load_data_option(data, root, resize, crop, skip_bad, max_bytes)
    with audit_progress() as show:
        found = run(purifier, images, fpr=fpr, batch_size=batch_size, device=device, progress=show)
    if path is None:
        assert out is not None
        save(purifier, out)
    else:
        # Resolve, so that a link stays a link and its target is replaced.
        annotate(path, out or path.resolve(), **{CALIBRATION_KEY: purifier.provenance[CALIBRATION_KEY]})
    score = getattr(purifier.config, "score", None)
    console.print(f"threshold  {found.threshold:.6g}" + (f" ({score})" if isinstance(score, str) else ""), markup=False)
    console.print(f"rejects    at most {100 * found.fpr:.12g}% of clean images (expected)", markup=False)
    console.print(f"data       {found.data}, {found.count} images", markup=False)
    shown = "  ".join(f"{place}%: {found.quantiles[place]:.4g}" for place in SHOWN_QUANTILES)
    console.print(f"quantiles  {shown}\ncheckpoint {out or path}", markup=False)
