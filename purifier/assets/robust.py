"""Builds ``demo``: a ``vae`` with bounds, whose encoder first learns alone as that of a ``certified`` purifier."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacking.threat import Threat
from ..contracts.checkpoint import load, save
from ..contracts.purifier import purifiers
from ..data.images import ImageData
from ..training.inner_attack import climb
from ..training.loop import train
from ..training.state import log_path, state_path

EPS = 0.1
LATENT = 64
BATCH_SIZE = 256
ALONE: Mapping[str, Any] = {
    "recipe": "certified:clean=0.8,steps=6,warmup=0,ramp=0",
    "epochs": 10,
    "batch_size": BATCH_SIZE,
    "lr": 4e-3,
    "ema": 0.999,
}
"""How the encoder goes on alone, from the first stage of ``demo-certified``."""
RECONSTRUCTION = 0.784
"""The recipe's default, and the weight while the decoder is fitted."""
TOGETHER: Mapping[str, Any] = {
    "recipe": f"robust:eps={EPS},bounds=0.2,steps=4,ramp=0,distillation=0,reconstruction={RECONSTRUCTION}",
    "epochs": 4,
    "batch_size": BATCH_SIZE,
    "lr": 3e-3,
    "precision": "float32",
}
FITTED_STEPS = 4
"""Of the attack that the decoder is fitted against."""
SCORES, OTHERS = 0.2, 0.1
"""The first values of the latent begin as the scores times the one, all others as random ones times the other."""


def train_robust(out: Path, certified: Path, data: ImageData, classifier: nn.Module) -> None:
    """Write the purifier to ``out``, in half precision, from the checkpoint of a ``certified`` one.

    What each stage made is kept beside ``out`` until the last one ends, and not made again.
    """
    alone, fitted, together = (out.with_stem(f"{out.stem}-{stage}") for stage in ("alone", "fitted", "together"))
    train_stage("certified", data, alone, classifier=classifier, init=certified, **ALONE)
    if not fitted.exists():
        torch.manual_seed(0)
        started = with_decoder(load(alone))
        fit_decoder(started, data, classifier)
        save(started, fitted)
    train_stage("vae", data, together, classifier=classifier, init=fitted, **TOGETHER)
    save(load(together).half(), out)
    for made in (alone, fitted, together):
        made.unlink()
        log_path(made).unlink(missing_ok=True)


def train_stage(plugin: str, data: ImageData, out: Path, **options: Any) -> None:
    """Train, or go on where it was stopped, unless ``out`` is there from an earlier build that was."""
    resume = state_path(out).exists()
    if resume or not out.exists():
        train(plugin, data, out, resume=resume, **options)


def with_decoder(certified: Any) -> Any:
    """A ``vae`` with a new decoder, whose encoder scores classes as the certified purifier scores components."""
    old = certified.config
    plugin: Any = purifiers.get("vae")
    config = plugin.Config(
        image_shape=old.image_shape,
        channels=old.channels // 3,
        depth=old.depth,
        latent=LATENT,
        encoder="bounded",
        classes=old.classes,
    )
    made = plugin(config)
    layers = {name.replace("last.", "scores."): value for name, value in certified.state_dict().items()}
    del layers["images"]
    missing, unexpected = made.encoder.load_state_dict(layers, strict=False)
    assert not unexpected and set(missing) == {"last.weight", "last.bias"}, (missing, unexpected)
    with torch.no_grad():
        scores, last = made.encoder.scores, made.encoder.last
        last.weight[:LATENT] *= OTHERS
        last.weight[: old.classes] = SCORES * scores.weight
        last.bias[: old.classes] = SCORES * scores.bias
    return made


def fit_decoder(made: Any, data: ImageData, classifier: nn.Module) -> None:
    """Learn the decoder, and the latent's mean from the values before it, of attacked images for one epoch."""
    learned = [*made.decoder.parameters(), *made.encoder.last.parameters()]
    made.eval().requires_grad_(False)
    for weight in learned:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=2e-3)

    def loss_of(labels: Tensor, attacked: Tensor) -> Tensor:
        return F.cross_entropy(classifier(made.purify(attacked)), labels, reduction="sum")

    order = torch.randperm(len(data)).tolist()
    parts = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    for step, (pixels, labels) in enumerate(data.batches(parts)):
        start = pixels + EPS * torch.empty_like(pixels).uniform_(-1, 1)
        threat, step_size = Threat("linf", EPS), 2 * EPS / FITTED_STEPS
        attacked = climb(partial(loss_of, labels), start, pixels, threat, FITTED_STEPS, step_size)
        purified = made.purify(attacked)
        loss = F.cross_entropy(classifier(purified), labels)
        loss = loss + RECONSTRUCTION * F.binary_cross_entropy(purified, pixels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        if step % 20 == 0:
            print(f"decoder alone, step {step} of {len(parts)}: loss {float(loss.detach()):.3f}", flush=True)
    made.requires_grad_(True)
