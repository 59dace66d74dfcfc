"""train(): trains a purifier and writes its checkpoint, saving states from which a stopped run can resume."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from ..contracts import checkpoint
from ..contracts.purifier import Purifier, purifiers
from ..data.given import Data
from ..data.images import ImageData
from ..errors import ConfigError, TrainingError
from ..exclusive import exclusive
from ..output import Output
from ..seeding import mix_seed
from ..specs import build
from ..torch_tools.channels_last import channels_last, fed_channels_last
from ..torch_tools.freezing import freeze
from ..vocabulary import OutputKind
from .argument_checks import check_kinds, check_numbers, check_out, device_of
from .classifier_checks import check_classifier, classifier_for, fingerprint
from .epoch import Run
from .optimisation import Follower
from .progress import Progress, Reporter
from .recipe import Recipe, learned_of
from .recipes import build_recipe
from .running import finish, run_epochs
from .saving import Saver
from .state import check_replaceable, read_state, state_path
from .torchrun import join_processes, own_device
from .training_data import data_facts, data_settings, labelled_for, training_images


def train(
    plugin: str,
    data: Data,
    out: str | Path,
    *,
    config: Mapping[str, object] | None = None,
    recipe: str = "elbo",
    classifier: str | Path | nn.Module | ModelProto | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
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
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    save_every: int = 1,
    save_minutes: float = 5.0,
    root: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Purifier:
    """Train a purifier and write its checkpoint; return the purifier loaded from it.

    Training also writes a log, ``NAME.log.jsonl``, and until it ends a state, ``NAME.train.safetensors``, next to
    ``out``. ``resume`` continues from that state, also in the middle of an epoch; on the CPU it reaches the same
    weights, bit for bit, as a run that was never stopped. ``KeyboardInterrupt`` saves the state before it is raised
    again, unless it comes in the middle of an update (then the last state stays) or there are several processes.

    Under torchrun each process takes its share of every batch, and the first process writes the files. The loss is
    that of one process with the same batch, except for the order of sums.

    Parameters
    ----------
    plugin
        Name of a purifier plugin.
    data
        The training data: a DATA spec, ``ImageData``, images, ``(images, labels)``, a torch Dataset or a DataLoader.
        Images without labels get the classifier's own answers as labels, if the recipe has a classifier.
    out
        The checkpoint to write, a ``.safetensors`` file. No other run can write it meanwhile.
    config
        Options of the plugin's Config; ``image_shape`` is taken from the data unless given.
    recipe
        ``elbo``: the purifier's own loss on clean images. ``denoise``: from adversarial images of a classifier to the
        clean ones. ``robust``: adversarial training in front of a classifier. A recipe takes options,
        ``robust:eps=0.1,steps=2``: the fields of ``Robust`` and so on.
    classifier, weights, random_weights, preprocessing, input, output, output_kind
        The classifier that the purifier is for, as for ``purifier.guard`` and ``purifier audit``. It is not
        changed, not by one bit. For an ONNX model the package onnx-ad computes gradients.
    epochs, batch_size, seed
        As usual. One left-over image joins the batch before it.
    optimizer, lr, schedule, clip, ema, precision, augment
        See ``Optimisation``; by default as the recipe suggests.
    resume
        Continue from the state file; all settings except ``epochs``, ``device``, ``save_every`` and ``save_minutes``
        must be the same. With a schedule the same weights also need the same ``epochs``.
    overwrite
        Replace another run's checkpoint, log and state. Checkpoint and log are kept until this run can replace them.
    device
        Where to train, such as ``cpu`` or ``cuda``.
    save_every
        Number of epochs between two states that are written at the end of an epoch.
    save_minutes
        Number of minutes between two states that are written inside epochs.
    root
        Folder that holds the named data sets.
    progress
        Called before and after the first step, then every few steps or seconds, and while the result of an epoch is
        checked.

    Raises
    ------
    ConfigError, PluginError
        An option, recipe or plugin is unknown or an option has an invalid value; the classifier has no gradients or
        returns probabilities.
    SpecError, DataError, ClassifierError
        A spec cannot be read, or what it names is missing or damaged.
    TrainingError
        There is nothing to train or to resume, the classifier does not have the labels of the data, or training went
        wrong: the loss became infinite or NaN, or the recipe found that its attack no longer works. The last state is
        kept.
    CheckpointError
        The state to resume from is damaged.
    OutputError
        ``out`` cannot be written or is there already, another run is writing it, or the path of the state holds a file
        that is not a training state.
    """
    check_kinds(plugin, out, config, recipe, progress, weights, root)
    out = Path(out)
    check_numbers(epochs, batch_size, seed, save_every, save_minutes)
    chosen = build_recipe(recipe)
    check_out(out, (weights, *chosen.input_files))
    if not resume:
        check_replaceable(out, overwrite)
    run_device = device_of(own_device(device))
    given = {"optimizer": optimizer, "lr": lr, "schedule": schedule, "clip": clip}
    given |= {"ema": ema, "precision": precision, "augment": augment}
    optimisation = chosen.suggested.with_given(given).on(run_device)
    model = classifier_for(
        chosen, classifier, weights, random_weights, preprocessing, input, Output(output, output_kind)
    )
    images = training_images(data, root, preprocessing if model is None else model.preprocessing, chosen, optimisation)
    purifier = _build(plugin, config or {}, images, seed, chosen).to(run_device).train()
    follower = Follower(purifier, optimisation)
    settings = {
        "plugin": plugin,
        "config": dataclasses.asdict(purifier.config),
        "recipe": recipe,
        "options": {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen) if field.init},
        "classifier": None if model is None else fingerprint(model),
        **dataclasses.asdict(optimisation),
        "batch_size": batch_size,
        "seed": seed,
        "data": images.name,
        **data_settings(images),
    }
    header = {**settings, "epochs": epochs, "device": str(device), **data_facts(images, model)}
    with ExitStack() as stack:
        stack.enter_context(exclusive(out) if os.environ.get("RANK", "0") == "0" else nullcontext())
        pixels = images.batch(images.spread(2))[0].to(run_device)
        if model is not None:
            stack.enter_context(freeze(model, device=run_device))
            check_classifier(model, chosen, images, run_device)
            stack.enter_context(channels_last(model, lambda images: [model(images)], pixels))
        images = labelled_for(purifier, images, model, batch_size, run_device)
        labels = images.labels[images.spread(2)].to(run_device)
        stack.enter_context(fed_channels_last(purifier, partial(learned_of, labels), pixels))
        processes = join_processes(run_device)
        state = read_state(state_path(out), follower, settings) if resume else None
        first = processes.rank == 0
        saver = Saver(
            out, follower, settings, minutes=save_minutes, writes=first, guarded=chosen.can_collapse, state=state
        )
        run = Run(
            chosen,
            purifier,
            follower,
            images,
            classifier=model,
            processes=processes,
            device=run_device,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            reporter=Reporter(progress if first else None, epochs, len(images)),
            saver=saver,
        )
        return finish(run, out, header, run_epochs(run, out, settings, header, state, save_every))


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
            f"purifier {plugin!r} declares a surrogate gradient, but this recipe needs an exact one; use the recipe "
            "denoise"
        )
    return purifier
