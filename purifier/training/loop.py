"""train(): from a plugin's name and data to a checkpoint, through states that a stopped run goes on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from ..contracts import checkpoint
from ..contracts.purifier import Purifier, purifiers
from ..data.images import ImageData
from ..data.loading import load_data
from ..errors import ConfigError, TrainingError
from ..seeding import mix_seed
from ..specs import build
from ..torch_tools.channels_last import channels_last, fed_channels_last
from ..torch_tools.freezing import freeze
from .argument_checks import check_kinds, check_numbers, check_out, device_of
from .classifier_checks import check_classifier, classifier_for, described
from .epoch import NotFinite, Progress, Run, out_of_memory
from .optimisation import Follower, Optimisation
from .recipe import Recipe, learned_of
from .recipes import build_recipe
from .state import check_replaceable, log_path, read_log, read_state, state_path, write_log, write_state
from .torchrun import joined, own_device


def train(
    plugin: str,
    data: ImageData | str,
    out: str | Path,
    *,
    config: Mapping[str, object] | None = None,
    recipe: str = "elbo",
    classifier: str | Path | nn.Module | ModelProto | None = None,
    weights: str | Path | None = None,
    preprocessing: Any = None,
    input: int | str | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    optimizer: str | None = None,
    lr: float | None = None,
    schedule: str | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: str | None = None,
    augment: str | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str | torch.device = "cpu",
    save_every: int = 1,
    root: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Purifier:
    """Train a purifier and write its checkpoint; the result is the checkpoint loaded.

    Beside ``out`` lie a log, ``NAME.log.jsonl``, and until the end a state, ``NAME.train.safetensors``, from
    which ``resume`` goes on: on the CPU to the same weights, bit for bit, as a run never stopped.

    Under torchrun each process takes its share of every batch, and the first writes the files: the loss is that of
    one process with the same batch, but for the order of sums.

    Parameters
    ----------
    plugin
        Name of a purifier plugin.
    data
        What to train on: labelled images or a DATA spec.
    out
        The checkpoint to write, a ``.safetensors`` file. What lies there, and its log, stay until this run has
        something to put in their place.
    config
        Options of the plugin's Config; ``image_shape`` is that of the data unless given.
    recipe
        ``elbo``: the purifier's own loss on the images as they are. ``denoise``: from adversarial images of a
        classifier to the clean ones. ``robust``: adversarial training in front of a classifier. With options,
        ``robust:eps=0.1,steps=2``, which are the fields of :class:`~purifier.training.robust.Robust` and so on.
    classifier, weights, preprocessing, input
        The classifier the purifier is for, as :func:`purifier.guard` and ``purifier audit`` take it. Not
        one bit of it is changed. An ONNX model gives gradients by the package onnx-ad.
    epochs, batch_size, seed
        As usual. One left-over image joins the batch before it.
    optimizer, lr, schedule, clip, ema, precision, augment
        See :class:`~purifier.training.optimisation.Optimisation`; by default what the recipe suggests.
    resume
        Go on from the state file; all settings but ``epochs``, ``device``, ``save_every`` must be as before. With a
        schedule, ``epochs`` too, for the same weights.
    device
        Where to train, such as ``cpu`` or ``cuda``.
    save_every
        Epochs between two states.
    root
        Folder of named data sets.
    progress
        Called every few steps and at the end of each epoch.

    Raises
    ------
    ConfigError, PluginError
        An option, recipe or plugin is unknown or has an impossible value; the classifier has no gradients or gives
        probabilities.
    SpecError, DataError, ClassifierError
        A spec cannot be read, or what it names is missing or damaged.
    TrainingError
        There is nothing to train or to resume, labels are none of the classifier's, or training went wrong: the loss
        became infinite or NaN, or the recipe's attack no longer means anything; the last state is kept.
    CheckpointError
        The state to resume is damaged.
    OutputError
        ``out`` cannot be written, or somebody else's file lies where the state goes.
    """
    check_kinds(plugin, out, config, recipe, progress, weights, root)
    out = Path(out)
    check_numbers(epochs, batch_size, seed, save_every)
    chosen = build_recipe(recipe)
    check_out(out, (weights, *chosen.reads))
    if not resume:
        check_replaceable(state_path(out))
    place = device_of(own_device(device))
    given = {
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "clip": clip,
        "ema": ema,
        "precision": precision,
        "augment": augment,
    }
    optimisation = chosen.suggested.with_given(given).on(place)
    images = _training_images(data, root, chosen, optimisation)
    model = classifier_for(chosen, classifier, weights=weights, preprocessing=preprocessing, input=input)
    purifier = _build(plugin, config or {}, images, seed, chosen).to(place).train()
    follower = Follower(purifier, optimisation)
    settings = {
        "plugin": plugin,
        "config": dataclasses.asdict(purifier.config),
        "recipe": recipe,
        "options": {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen) if field.init},
        "classifier": None if model is None else described(model),
        **dataclasses.asdict(optimisation),
        "batch_size": batch_size,
        "seed": seed,
        "data": images.name,
        "images": len(images),
    }
    header = {**settings, "epochs": epochs, "device": str(device)}
    with ExitStack() as stack:
        pixels, labels = (part.to(place) for part in images.batch(images.spread(2)))
        if model is not None:
            stack.enter_context(freeze(model, device=place))
            check_classifier(model, chosen, images, place)
            stack.enter_context(channels_last(model, lambda images: [model(images)], pixels))
        stack.enter_context(fed_channels_last(purifier, partial(learned_of, labels), pixels))
        processes = joined(place)
        entry = read_state(state_path(out), follower, settings) if resume else None
        run = Run(
            chosen,
            purifier,
            follower,
            images,
            classifier=model,
            processes=processes,
            device=place,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            progress=progress,
        )
        entry = _run(run, out, settings, header, entry, save_every)
        return _finish(run, out, header, entry)


def _training_images(
    data: ImageData | str, root: str | Path | None, recipe: Recipe, optimisation: Optimisation
) -> ImageData:
    images = load_data(data, root=root) if isinstance(data, str) else data
    if not isinstance(images, ImageData):
        raise ConfigError(f"data: expected a DATA spec or ImageData, got {type(images).__name__}")
    if optimisation.augment != "none" and not recipe.takes_moved:
        raise ConfigError("denoise:cached=true gives the same images in each epoch; leave augment or cached out")
    return images


def _finish(run: Run, out: Path, header: Mapping[str, Any], entry: Mapping[str, Any]) -> Purifier:
    """Write the checkpoint, remove the state, and return the checkpoint loaded."""
    processes = run.processes
    if processes.rank == 0:
        metrics = {
            **entry["terms"],
            **entry.get("figures", {}),
            "epochs": run.epochs,
            "images_per_second": entry["images_per_second"],
        }
        result = run.follower.result
        assert isinstance(result, Purifier)
        told = ("recipe", "classifier", "seed", "data")
        made = {name: header[name] for name in told}
        how = {name: header[name] for name in header if name not in (*told, "plugin", "config")}
        checkpoint.save(result, out, **made, training=how, metrics=metrics)
    processes.wait()
    trained = checkpoint.load(out)
    processes.wait()
    if processes.rank == 0:
        state_path(out).unlink(missing_ok=True)
    return trained


def _run(
    run: Run,
    out: Path,
    settings: Mapping[str, Any],
    header: Mapping[str, Any],
    entry: dict[str, Any] | None,
    save_every: int,
) -> dict[str, Any]:
    """Train the epochs after ``entry``, writing state and log; returns the last epoch's entry."""
    state, log, epochs = state_path(out), log_path(out), run.epochs
    done = entry["epoch"] if entry else 0
    if done > epochs:
        raise TrainingError(f"{state} is at epoch {done} already, expected at most {epochs}; raise epochs")
    writes = run.processes.rank == 0
    entries = read_log(log, until=done) if entry else []
    if entry and writes:  # it is this run's own log; another's stays until this run has an epoch to show
        write_log(log, header, entries)
    for epoch in range(done + 1, epochs + 1):
        kept = "nothing was saved yet"
        if done:
            kept = f"epoch {done} is kept in {state}: to resume with epochs={done} makes it the checkpoint"
        try:
            entry = run.epoch(epoch)
        except NotFinite as problem:
            lr = run.follower.settings.lr
            raise TrainingError(f"{problem}; start again with lr below {lr:g}; {kept}") from None
        except TrainingError as problem:
            raise TrainingError(f"{problem}; {kept}") from problem
        except (RuntimeError, MemoryError) as problem:
            if not out_of_memory(problem):
                raise
            raise TrainingError(f"out of memory; lower batch_size or the purifier's sizes; {kept}") from problem
        if run.classifier is not None and described(run.classifier) != settings["classifier"]:
            raise TrainingError(f"{run.classifier.describe()} changed while it was trained for; it must stay as it is")
        entries.append(entry)
        if writes:
            write_log(log, header, entries)
            if epoch % save_every == 0 or epoch == epochs:
                write_state(state, run.follower, settings, entry)
        if epoch % save_every == 0:
            done = epoch
    assert entry is not None  # epochs is 1 or more
    return entry


def _build(plugin: str, config: Mapping[str, object], data: ImageData, seed: int, recipe: Recipe) -> Purifier:
    cls = purifiers.get(plugin)
    sized = any(field.name == "image_shape" for field in dataclasses.fields(cls.Config))
    options = {"image_shape": data.shape, **config} if sized else config
    built: Any = build(cls.Config, options, what=f"purifier {plugin!r}")
    if sized and tuple(built.image_shape) != data.shape:
        raise ConfigError(
            f"purifier {plugin!r}: image_shape is {tuple(built.image_shape)}, but the images of {data.name} "
            f"are {data.shape}; leave image_shape out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix_seed(seed, "weights"))
        purifier = checkpoint.make(cls, built, f"purifier {plugin!r}")
    if not any(weight.requires_grad for weight in purifier.parameters()):
        raise TrainingError(f"purifier {plugin!r} has nothing to train; use it as it is")
    if recipe.needs_exact and purifier.gradient != "exact":
        raise ConfigError(
            f"purifier {plugin!r} declares a surrogate gradient, and this recipe learns through autograd's; take the "
            "recipe denoise"
        )
    return purifier
