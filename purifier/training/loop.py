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

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.given import Data
from ..exclusive import exclusive
from ..output import Output
from ..torch_tools.channels_last import channels_last, fed_channels_last
from ..torch_tools.freezing import freeze
from ..torch_tools.torchrun import join_processes, own_device
from ..vocabulary import OutputKind
from .argument_checks import check_kinds, check_numbers, check_out, device_of
from .building import MAX_WEIGHTS, Start, built
from .classifier_checks import check_classifier, classifier_for, fingerprint
from .epoch import Run
from .fitting import BATCH_SIZE, fitting_batch
from .optimisation import Follower, Optimisation
from .progress import Progress, Reporter, labelling
from .recipe import Recipe, learned_of
from .recipes import build_recipe
from .running import finish, run_epochs
from .saving import Saver
from .state import check_replaceable, read_state, settings_of, state_path
from .training_data import data_facts, data_settings, labelled_for, training_images
from .trial import gains_by_bfloat16


def train(
    plugin: str,
    data: Data,
    out: str | Path,
    *,
    config: Mapping[str, object] | None = None,
    size: str | None = None,
    init: str | Path | None = None,
    max_weights: int = MAX_WEIGHTS,
    recipe: str = "elbo",
    classifier: str | Path | nn.Module | ModelProto | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    epochs: int = 10,
    batch_size: int | None = None,
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
        Options of the plugin's Config; ``image_shape`` is taken from the data unless given. Options that are not given
        are those of the ``size`` or of ``init``, else those that the plugin suggests for images of this size.
    size
        How large the purifier is, one of the sizes that the plugin has: ``tiny``, ``small`` or ``base`` for ``vae`` and
        ``gmvae``.
    init
        The checkpoint to begin with, a ``.safetensors`` file or a shipped purifier: its weights and its options, with
        which ``config`` and ``size`` must agree. A purifier that takes images of any size is trained on at the size of
        the data. The log and the new checkpoint name its sha256.
    max_weights
        The largest number of weights allowed.
    recipe
        ``elbo``: the purifier's own loss on clean images. ``denoise``: from adversarial images of a classifier to the
        clean ones. ``robust``: adversarial training in front of a classifier. ``certified``: with bounds that prove
        robustness. A recipe takes options, ``robust:eps=0.1,steps=2``: the fields of ``Robust`` and so on.
    classifier, weights, random_weights, preprocessing, input, output, output_kind
        The classifier that the purifier is for, as for ``purifier.guard`` and ``purifier audit``. It is not
        changed, not by one bit. For an ONNX model torch computes gradients.
    epochs, seed
        As usual.
    batch_size
        Images per step, for all processes together; one left-over image joins the batch before it. By default 128, or
        the largest of 64, 32, ..., 2 that fits into memory, by what steps with two and with four images take.
    optimizer, lr, schedule, clip, ema, precision, augment
        See ``Optimisation``; by default as the recipe suggests.
    resume
        Continue from the state file; all settings except ``epochs``, ``device``, ``save_every``, ``save_minutes`` and
        ``max_weights`` must be the same. A batch size that was chosen and the precision ``auto`` stay what they were.
        With a schedule the same weights also need the same ``epochs``.
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
        An option, size, recipe or plugin is unknown or an option has an invalid value; ``init`` does not fit; there are
        more weights than ``max_weights``, or a step takes more memory than there is; the classifier has no gradients
        or returns probabilities.
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
    check_kinds(plugin, out, config, recipe, progress, weights, root, size, init)
    out = Path(out)
    check_numbers(epochs, batch_size, seed, save_every, save_minutes, max_weights)
    chosen = build_recipe(recipe)
    check_out(out, (weights, init, *chosen.input_files))
    if not resume:
        check_replaceable(out, overwrite)
    run_device = device_of(own_device(device))
    before = settings_of(state_path(out)) if resume else {}
    given = {"optimizer": optimizer, "lr": lr, "schedule": schedule, "clip": clip}
    given |= {"ema": ema, "precision": precision, "augment": augment}
    optimisation = chosen.suggested.with_given(given)
    model = classifier_for(
        chosen, classifier, weights, random_weights, preprocessing, input, Output(output, output_kind)
    )
    images = training_images(data, root, preprocessing if model is None else model.preprocessing, chosen, optimisation)
    purifier, init_sha256 = built(Start(plugin, config or {}, size, init, max_weights), images, seed, chosen)
    purifier.to(run_device).train()
    settings: dict[str, Any] = {"plugin": plugin, "init": init_sha256, "seed": seed, **data_settings(images)}
    with ExitStack() as stack:
        stack.enter_context(exclusive(out) if os.environ.get("RANK", "0") == "0" else nullcontext())
        pixels = images.batch(images.spread(2))[0].to(run_device)
        if model is not None:
            stack.enter_context(freeze(model, device=run_device))
            check_classifier(model, chosen, images, run_device)
            stack.enter_context(channels_last(model, lambda images: [model(images)], pixels))
        facts = data_facts(images, model)
        tell = labelling(progress, epochs, len(images))
        images = labelled_for(purifier, images, model, batch_size or BATCH_SIZE, run_device, tell)
        processes = join_processes(run_device)
        gains = partial(gains_by_bfloat16, chosen, purifier, images, model, run_device)
        optimisation = optimisation.on(run_device, before.get("precision"), gains, processes)
        follower = Follower(purifier, optimisation, trained=init is not None)
        settings |= _settings(purifier, recipe, chosen, model, optimisation)
        labels = images.labels[images.spread(2)].to(run_device)
        stack.enter_context(fed_channels_last(purifier, partial(learned_of, labels), pixels))
        fitted = (chosen, purifier, follower, images, model, processes, run_device)
        known = batch_size or before.get("batch_size")  # a resumed run keeps what was chosen
        settings["batch_size"] = known if resume else fitting_batch(batch_size, *fitted)
        state = read_state(state_path(out), follower, settings) if resume else None
        header = {**settings, "epochs": epochs, "device": str(device), **facts}
        first, guarded = processes.rank == 0, chosen.can_collapse
        saver = Saver(out, follower, settings, minutes=save_minutes, writes=first, guarded=guarded, state=state)
        run = Run(
            chosen,
            purifier,
            follower,
            images,
            classifier=model,
            processes=processes,
            device=run_device,
            batch_size=settings["batch_size"],
            epochs=epochs,
            seed=seed,
            reporter=Reporter(progress if first else None, epochs, len(images)),
            saver=saver,
        )
        if batch_size is None and settings["batch_size"] < BATCH_SIZE:
            run.reporter.warn(f"batches of {settings['batch_size']} images, which is what fits into memory")
        return finish(run, out, header, run_epochs(run, out, settings, header, state, save_every))


def _settings(
    purifier: Purifier, recipe: str, chosen: Recipe, model: PixelClassifier | None, optimisation: Optimisation
) -> dict[str, Any]:
    """The settings of how it is trained that must be the same when a run is resumed."""
    return {
        "config": dataclasses.asdict(purifier.config),
        "recipe": recipe,
        "options": {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen) if field.init},
        "classifier": None if model is None else fingerprint(model),
        **dataclasses.asdict(optimisation),
    }
