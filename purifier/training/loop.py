"""The training loop. Every random number follows from seed, epoch and image index, and from nothing else."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..data import ImageData, load_data
from ..errors import ConfigError, TrainingError
from ..interfaces import Purifier, Scheduled, purifiers
from ..seeding import SampleGenerator, mix_seed
from ..specs import build
from .checks import check_numbers, check_out, device_of
from .recipes import Recipe, build_recipe
from .state import check_replaceable, log_path, read_log, read_state, state_path, write_log, write_state

REPORT_STEPS = 20
"""How often the loss is looked at: each look makes a GPU wait."""


@dataclass(frozen=True)
class Progress:
    """How far training is, handed to ``progress`` every few steps."""

    epoch: int
    epochs: int
    images: int
    """Images seen since epoch 1; ``total`` at the end."""
    total: int
    loss: float
    images_per_second: float


def train(
    plugin: str,
    data: ImageData | str,
    out: str | Path,
    *,
    config: Mapping[str, object] | None = None,
    recipe: str = "elbo",
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    resume: bool = False,
    device: str | torch.device = "cpu",
    save_every: int = 1,
    root: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Purifier:
    """Train a purifier with Adam and write its checkpoint; the result is the checkpoint loaded.

    Beside ``out`` lie a log, ``NAME.log.jsonl``, and until the end a state, ``NAME.train.safetensors``, from
    which ``resume`` goes on: on the CPU to the same weights, bit for bit, as a run never stopped.

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
        ``elbo``: the purifier's own loss on the images as they are.
    epochs, batch_size, lr, seed
        As usual. One left-over image joins the batch before it.
    resume
        Go on from the state file; all settings but ``epochs``, ``device``, ``save_every`` must be as before.
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
        An option, recipe or plugin is unknown or has an impossible value.
    SpecError, DataError
        ``data`` is a spec that cannot be read, or of data that is missing or damaged.
    TrainingError
        There is nothing to train or to resume, or the loss became infinite or NaN; the last state is kept.
    CheckpointError
        The state to resume is damaged.
    OutputError
        ``out`` cannot be written, or somebody else's file lies where the state goes.
    """
    out = Path(out)
    state, log = state_path(out), log_path(out)
    check_numbers(epochs, batch_size, lr, seed, save_every)
    check_out(out)
    if not resume:
        check_replaceable(state)
    place = device_of(device)
    chosen = build_recipe(recipe)
    images = load_data(data, root=root) if isinstance(data, str) else data
    if not isinstance(images, ImageData):
        raise ConfigError(f"data: expected a DATA spec or ImageData, got {type(images).__name__}")
    purifier = _build(plugin, config or {}, images, seed).to(place).train()
    optimizer = torch.optim.Adam([weight for weight in purifier.parameters() if weight.requires_grad], lr=lr)
    settings = {
        "plugin": plugin,
        "config": dataclasses.asdict(purifier.config),
        "recipe": recipe,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "data": images.name,
        "images": len(images),
    }
    header = {**settings, "epochs": epochs, "device": str(device)}
    entry = read_state(state, purifier, optimizer, settings) if resume else None
    done = entry["epoch"] if entry else 0
    if done > epochs:
        raise TrainingError(f"{state} is at epoch {done} already, expected at most {epochs}; raise epochs")
    entries = read_log(log, until=done) if resume else []
    if resume:  # it is this run's own log; another's stays until this run has an epoch to show
        write_log(log, header, entries)
    for epoch in range(done + 1, epochs + 1):
        try:
            entry = _train_epoch(purifier, optimizer, chosen, images, settings, epoch, epochs, progress)
        except _NotFinite as problem:
            kept = f"epoch {done} is kept in {state}" if done else "nothing was saved yet"
            raise TrainingError(f"{problem}; {kept}: start again with lr below {lr:g}") from None
        entries.append(entry)
        write_log(log, header, entries)
        if epoch % save_every == 0 or epoch == epochs:
            write_state(state, purifier, optimizer, settings, entry)
            done = epoch
    assert entry is not None  # epochs is 1 or more
    metrics = {
        **entry["terms"],
        **entry.get("figures", {}),
        "epochs": epochs,
        "images_per_second": entry["images_per_second"],
    }
    checkpoint.save(purifier, out, recipe=recipe, seed=seed, data=images.name, metrics=metrics)
    trained = checkpoint.load(out)
    state.unlink(missing_ok=True)
    return trained


class _NotFinite(Exception):
    """Loss or weights are no longer numbers; the message says where."""


def _train_epoch(
    purifier: Purifier,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    data: ImageData,
    settings: Mapping[str, Any],
    epoch: int,
    epochs: int,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Any]:
    """Train one epoch; returns its log entry."""
    seed = settings["seed"]
    place = next(purifier.parameters()).device
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(mix_seed(seed, "shuffle", epoch)))
    batches = list(_batches(order.tolist(), settings["batch_size"]))
    names: list[str] = []
    rows: list[Tensor] = []
    looked, seen = 0, 0
    start = time.perf_counter()
    # Recipes and purifiers take their randomness from the generator; a layer that does not (dropout) is
    # still the same after a resume, and the caller's own stream is left alone.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(mix_seed(seed, "layers", epoch))
        if isinstance(purifier, Scheduled):
            purifier.begin_epoch(epoch, epochs, data)
        for step, indices in enumerate(batches, 1):
            pixels, labels = (part.to(place) for part in data.batch(indices))
            generator = SampleGenerator(mix_seed(seed, "noise", epoch), indices)
            terms = recipe.step(purifier, pixels, labels, generator)
            row = torch.stack(list(terms.values()))
            optimizer.zero_grad()
            torch.autograd.backward(row.sum())
            optimizer.step()
            names = list(terms)
            rows.append(row.detach())
            seen += len(indices)
            if step % REPORT_STEPS == 0 or step == len(batches):
                _check_finite(rows[looked:], names, epoch, looked)
                looked = step
                if progress is not None:
                    progress(
                        Progress(
                            epoch=epoch,
                            epochs=epochs,
                            images=(epoch - 1) * len(data) + seen,
                            total=epochs * len(data),
                            loss=float(rows[-1].sum()),
                            images_per_second=seen / (time.perf_counter() - start),
                        )
                    )
    for name, value in purifier.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise _NotFinite(f"weights {name!r} became NaN or infinite in epoch {epoch}")
    for moments in optimizer.state.values():
        if not all(value.isfinite().all() for value in moments.values()):
            raise _NotFinite(f"a mean of squared gradients became infinite in epoch {epoch}")
    seconds = time.perf_counter() - start
    sizes = torch.tensor([len(indices) for indices in batches], dtype=torch.float64)
    means = (torch.stack(rows).cpu().double() * sizes[:, None]).sum(0) / len(data)
    return {
        "epoch": epoch,
        "step": epoch * len(batches),
        "loss": float(means.sum()),
        "terms": dict(zip(names, means.tolist(), strict=True)),
        "figures": purifier.figures() if isinstance(purifier, Scheduled) else {},
        "images_per_second": round(len(data) / seconds, 1),
        "seconds": round(seconds, 3),
    }


def _check_finite(rows: Sequence[Tensor], names: Sequence[str], epoch: int, steps_before: int) -> None:
    stacked = torch.stack(list(rows))
    bad = (~stacked.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        values = (f"{name} {value:g}" for name, value in zip(names, stacked[bad[0]].tolist(), strict=True))
        raise _NotFinite(
            f"the loss is not finite at epoch {epoch}, step {steps_before + bad[0] + 1} ({', '.join(values)})"
        )


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut ``order`` up; a single image at the end joins the batch before: BatchNorm cannot take one alone."""
    start = 0
    while start < len(order):
        stop = start + size
        if stop == len(order) - 1 and size > 1:
            stop += 1
        yield order[start:stop]
        start = stop


def _build(plugin: str, config: Mapping[str, object], data: ImageData, seed: int) -> Purifier:
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
        purifier = cls(built)
    if not any(weight.requires_grad for weight in purifier.parameters()):
        raise TrainingError(f"purifier {plugin!r} has nothing to train; use it as it is")
    return purifier
