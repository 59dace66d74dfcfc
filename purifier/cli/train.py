"""``purifier train``: train a purifier and write its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from ..specs import split_spec
from ..vocabulary import OutputKind
from .console import plain_console
from .data_options import CLASSES, CROP, MAX_BYTES, NO_LABELS, RESIZE, ROOT, SKIP_BAD, load_data_option
from .options import (
    INPUT,
    LIMIT,
    OUTPUT,
    OUTPUT_KIND,
    PREPROCESSING,
    RANDOM_WEIGHTS,
    WEIGHTS,
    read_input_option,
    read_model_options,
    read_output_option,
    read_preprocessing_option,
)


def train(
    plugin: Annotated[str, typer.Argument(help="Name of a purifier plugin, such as vae.")],
    data: Annotated[str, typer.Option(help="DATA spec, such as fashion-mnist:train.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, a .safetensors file.")],
    size: Annotated[
        str | None, typer.Option(help="Size of the purifier: tiny, small or base (default: what suits the images).")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Checkpoint to begin with, of the same plugin.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="How to train: elbo, denoise, robust or certified; options as in robust:eps=0.1,steps=2."),
    ] = "elbo",
    classifier: Annotated[
        str | None,
        typer.Option(help="MODEL spec of the classifier that the purifier is for (not with elbo)."),
    ] = None,
    weights: Annotated[Path | None, WEIGHTS] = None,
    random_weights: Annotated[bool, RANDOM_WEIGHTS] = False,
    preprocessing: Annotated[str | None, PREPROCESSING] = None,
    input: Annotated[str | None, INPUT] = None,
    limit: Annotated[list[str] | None, LIMIT] = None,
    output: Annotated[str | None, OUTPUT] = None,
    output_kind: Annotated[OutputKind, OUTPUT_KIND] = "logits",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 10,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step (default: 128, or what fits into memory).")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam or muon (default: the recipe's; robust: muon).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: the recipe's, 1e-3 or 5e-3).")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant or cosine (default: the recipe's; robust: cosine).")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm; 0 for no limit (robust: 1).")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay per step of the averaged weights; 0 for no average (robust: 0.999).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is faster (robust: auto).")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, shift, flip (shifts and mirror images) or crop (larger shifts and mirror images)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of another run.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of the plugin; may be repeated."),
    ] = None,
    root: Annotated[Path | None, ROOT] = None,
    resize: Annotated[str | None, RESIZE] = None,
    crop: Annotated[str | None, CROP] = None,
    classes: Annotated[Path | None, CLASSES] = None,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    max_bytes: Annotated[int | None, MAX_BYTES] = None,
    no_labels: Annotated[bool, NO_LABELS] = False,
    max_weights: Annotated[int, typer.Option(help="Largest number of weights allowed.")] = 50_000_000,
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    save_every: Annotated[
        int, typer.Option(help="Epochs between two states, from which a run can resume, at the end of an epoch.")
    ] = 1,
    save_minutes: Annotated[float, typer.Option(help="Minutes between two states inside epochs.")] = 5.0,
) -> None:
    """Train a purifier and write its checkpoint; on several processes: torchrun -m purifier train ..."""
    from ..training.argument_checks import check_out
    from ..training.loop import train as run
    from ..training.recipes import build_recipe
    from ..training.state import log_path
    from .training_progress import training_progress

    _check_plain_name(plugin)
    config = split_spec(f"{plugin}:{','.join(settings)}")[1] if settings else {}
    wanted = read_preprocessing_option(preprocessing)
    model: Any = classifier
    if classifier is not None and build_recipe(recipe).needs_classifier:
        # Read before the images: it says how they are resized and cropped.
        check_out(out, [weights])
        model, wanted = read_model_options(classifier, weights, random_weights, wanted)
    read = model is not classifier
    images = load_data_option(
        data, root, resize, crop, skip_bad, max_bytes, classes=classes, preprocessing=wanted, no_labels=no_labels
    )
    quiet = os.environ.get("RANK", "0") != "0"
    console = plain_console(stderr=True, soft_wrap=True, quiet=quiet)
    with training_progress(console) as show:
        trained = run(
            plugin,
            images,
            out,
            config=config,
            size=size,
            init=init,
            max_weights=max_weights,
            recipe=recipe,
            classifier=model,
            weights=None if read else weights,
            random_weights=random_weights and not read,
            preprocessing=wanted,
            input=read_input_option(input),
            output=read_output_option(output),
            output_kind=output_kind,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            schedule=schedule,
            clip=clip,
            ema=ema,
            precision=precision,
            augment=augment,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            device=device,
            save_every=save_every,
            save_minutes=save_minutes,
            progress=show,
        )
    console = plain_console(soft_wrap=True, quiet=quiet)
    for name, value in trained.provenance["metrics"].items():
        console.print(f"{name:>20} {value:.6g}", markup=False)
    console.print(f"checkpoint {out}\nlog        {log_path(out)}", markup=False)


def _check_plain_name(plugin: str) -> None:
    name, colon, options = plugin.partition(":")
    if colon:
        raise SpecError(
            f"expected the name of a purifier plugin, got {plugin!r}; the plugin's options go in --set: {name} "
            + " ".join(f"--set {option}" for option in (options or "KEY=VALUE").split(",")),
            plugin,
        )
