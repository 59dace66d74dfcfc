"""``purifier train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import progress as bars
from rich.console import Console

from ..data import load_data
from ..errors import SpecError
from ..specs import split_spec
from ..training import Progress
from ..training import train as run
from ..training.state import log_path
from .console import plain_console


def train(
    plugin: Annotated[str, typer.Argument(help="Name of a purifier plugin, such as vae.")],
    data: Annotated[str, typer.Option(help="DATA spec, such as fashion-mnist:train.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, a .safetensors file.")],
    recipe: Annotated[str, typer.Option(help="How to train: elbo.")] = "elbo",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Names every random number of the run.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of the plugin; may be repeated."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data sets known by name.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda.")] = "cpu",
    save_every: Annotated[int, typer.Option(help="Epochs between two states to resume from.")] = 1,
) -> None:
    """Train a purifier and write its checkpoint."""
    name, colon, options = plugin.partition(":")
    if colon:
        raise SpecError(
            f"expected the name of a purifier plugin, got {plugin!r}; the plugin's options go in --set: {name} "
            + " ".join(f"--set {option}" for option in (options or "KEY=VALUE").split(",")),
            plugin,
        )
    config = split_spec(f"{plugin}:{','.join(settings)}")[1] if settings else {}
    images = load_data(data, root=root)
    console = plain_console(soft_wrap=True)
    with _bar(console) as bar:
        task = bar.add_task("", total=None, visible=False, loss="", speed="")

        def show(now: Progress) -> None:
            bar.update(
                task,
                visible=True,
                description=f"epoch {now.epoch}/{now.epochs}",
                completed=now.images,
                total=now.total,
                loss=f"loss {now.loss:.4g}",
                speed=f"{now.images_per_second:.0f} images/s",
            )

        trained = run(
            plugin,
            images,
            out,
            config=config,
            recipe=recipe,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            resume=resume,
            device=device,
            save_every=save_every,
            progress=show,
        )
    for name, value in trained.provenance["metrics"].items():
        console.print(f"{name:>20} {value:.6g}", markup=False)
    console.print(f"checkpoint {out}\nlog        {log_path(out)}", markup=False)


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[loss]}"),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(),
        console=console,
    )
