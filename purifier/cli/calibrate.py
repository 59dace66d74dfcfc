"""``purifier calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError
from .console import plain_console
from .progress import audit_progress

SHOWN_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def calibrate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Checkpoint to calibrate; with --out any PURIFIER spec.")
    ],
    data: Annotated[str, typer.Option(help="DATA spec of clean images that it was not trained on.")],
    fpr: Annotated[float, typer.Option(help="Share of clean images that may be rejected.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint to write; by default CKPT itself, its weights unchanged.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data sets known by name.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 250,
    device: Annotated[str | None, typer.Option(help="Where to score: cpu, cuda.")] = None,
) -> None:
    """Find the score above which images are rejected, on clean images, and store it in the checkpoint."""
    from ..contracts.checkpoint import annotate, checkpoint_path, load, save
    from ..rejection.calibration import CALIBRATION_KEY
    from ..rejection.calibration import calibrate as run

    path = checkpoint_path(checkpoint)
    if path is None and out is None:
        raise SpecError(
            f"{checkpoint!r} is no checkpoint file that could be changed; say with --out which to write", checkpoint
        )
    purifier = load(checkpoint)
    console = plain_console(soft_wrap=True)
    with audit_progress(console) as show:
        found = run(purifier, data, fpr=fpr, batch_size=batch_size, device=device, root=root, progress=show)
    if path is None:
        assert out is not None
        save(purifier, out)
    else:
        # In place a link stays one: what it points to is replaced.
        annotate(path, out or path.resolve(), **{CALIBRATION_KEY: purifier.provenance[CALIBRATION_KEY]})
    score = getattr(purifier.config, "score", None)
    console.print(f"threshold  {found.threshold:.6g}" + (f" ({score})" if isinstance(score, str) else ""), markup=False)
    console.print(f"rejects    at most {100 * found.fpr:.12g}% of clean images, expected", markup=False)
    console.print(f"data       {found.data}, {found.count} images", markup=False)
    shown = "  ".join(f"{place}%: {found.quantiles[place]:.4g}" for place in SHOWN_QUANTILES)
    console.print(f"quantiles  {shown}\ncheckpoint {out or path}", markup=False)
