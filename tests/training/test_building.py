"""Sizes, and training that begins with a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nets import trained
from purifier.contracts import checkpoint
from purifier.contracts.purifier import Purifier, purifiers
from purifier.errors import ConfigError, OutputError, TrainingError
from purifier.training.loop import train
from training_helpers import same

SMALL: dict[str, Any] = {"channels": 2, "latent": 4}
MAP: dict[str, Any] = {**SMALL, "spatial": True, "depth": 1}


class Stopped(Exception):
    pass


def images(shape: tuple[int, int, int], count: int = 4) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def made(out: Path, plugin: str = "vae", shape: tuple[int, int, int] = (1, 16, 16), **options: Any) -> Purifier:
    return train(plugin, images(shape), out, **{"epochs": 1, "config": MAP, "overwrite": True, **options})


def log_of(out: Path) -> dict[str, Any]:
    first = json.loads(out.with_name(f"{out.stem}.log.jsonl").read_text().splitlines()[0])
    return dict(first["settings"])


@pytest.mark.parametrize(("side", "size"), [(64, None), (16, "tiny"), (16, "small"), (64, "base")])
def test_options_are_those_that_the_plugin_suggests(side: int, size: str | None, tmp_path: Path) -> None:
    kind = purifiers.get("vae").Config
    expected = kind(image_shape=(3, side, side), **{**kind.suggested((3, side, side), size), "channels": 2})
    trained = made(tmp_path / "a.safetensors", shape=(3, side, side), size=size, config={"channels": 2}, batch_size=2)
    assert trained.config == expected
    assert trained.config.spatial


def test_large_colour_images_get_no_vector_of_latents_by_default(tmp_path: Path) -> None:
    trained = made(tmp_path / "a.safetensors", shape=(3, 224, 224), config={"channels": 4}, batch_size=2)
    assert sum(weight.numel() for weight in trained.parameters()) < 1e6
    with pytest.raises(ConfigError, match=r"weights .* at most 50,000,000: lower its sizes, or choose a size"):
        made(tmp_path / "b.safetensors", shape=(3, 224, 224), config={"spatial": False, "stem": 1, "channels": 128})


def test_the_limit_on_weights_can_be_raised(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    count = sum(weight.numel() for weight in made(out).parameters())
    assert same(made(out, max_weights=count), made(out))
    with pytest.raises(ConfigError, match="raise --max-weights"):
        made(out, max_weights=count - 1)


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        ("vae", {"size": "huge"}, "size: expected one of tiny, small, base, got 'huge'"),
        ("latent", {"size": "tiny", "config": {"base": "demo"}}, "'latent' comes in one size only; leave size out"),
        ("vae", {"size": 3}, "size: expected the name of a size"),
        ("vae", {"max_weights": 0}, "max_weights: expected a whole number"),
        ("vae", {"init": 3}, "init: expected a checkpoint"),
        ("vae", {"init": "identity"}, "init: expected a checkpoint, a .safetensors file, got 'identity'"),
        ("gmvae", {"init": "demo"}, "init: demo holds a 'vae', not a 'gmvae'; train 'vae', or leave init out"),
    ],
)
def test_bad_sizes_and_checkpoints(plugin: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path / "a.safetensors", plugin, (1, 28, 28), **{"config": {}, **options})
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 24, 19)])
def test_training_begins_with_a_checkpoints_weights(shape: tuple[int, int, int], tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    before = made(first, lr=0.1)
    # With a rate this small, Adam's steps of lr each change the weights by less than rounding.
    after = made(out, shape=shape, init=first, config={}, lr=1e-12)
    assert after.config == type(before.config)(image_shape=shape, **MAP)
    assert all(
        torch.allclose(one, other, atol=1e-9)
        for one, other in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert log_of(out)["init"] == after.provenance["training"]["init"] == digest
    assert log_of(first)["init"] is None


def test_the_average_begins_with_the_checkpoint(tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    before = made(first)
    options = {"init": first, "lr": 0.01, "batch_size": 4}
    last, average = made(out, **options), made(out, ema=0.9, **options)
    # One step: the checkpoint counts as the step before it, so the decay is (1 + 1) / (10 + 1).
    for start, end, mean in zip(*(one.state_dict().values() for one in (before, last, average)), strict=True):
        torch.testing.assert_close(mean, start * 2 / 11 + end * 9 / 11)


def test_what_does_not_fit_a_checkpoint_is_named(tmp_path: Path) -> None:
    first, vector, out = (tmp_path / f"{name}.safetensors" for name in ("first", "vector", "out"))
    made(first)
    made(vector, config=SMALL)
    for options, message in (
        ({"config": {"latent": 5}}, "has latent=4, got latent=5; leave out one or the other"),
        ({"config": {}, "size": "small"}, r"got channels=16 \(size small\); leave out one or the other"),
        ({"shape": (3, 16, 16)}, "with another number of channels; start from a checkpoint for such images"),
        ({"init": vector, "shape": (1, 20, 16), "config": {}}, "resize them to 16x16, or start from a checkpoint with"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(out, **{"init": first, **options})
    with pytest.raises(OutputError, match="this run reads its weights from that file"):
        made(first, init=first)
    assert made(out, init=first, config={"latent": "4"}).config.latent == 4


def test_a_resumed_run_has_the_same_checkpoint_at_its_start(tmp_path: Path) -> None:
    first, other, out = (tmp_path / f"{name}.safetensors" for name in ("first", "other", "out"))
    made(first)
    made(other, seed=1)

    def stop(_: object) -> None:
        raise Stopped

    def begin(**options: Any) -> Purifier:
        return made(out, config={}, init=first, epochs=2, overwrite=False, **options)

    straight = made(out, config={}, init=first, epochs=2)
    for path in tmp_path.glob("out.*"):
        path.unlink()
    seen: list[object] = []

    def second(now: Any) -> None:
        if now.epoch == 2:
            stop(now)
        seen.append(now)

    with pytest.raises(Stopped):
        begin(progress=second)
    with pytest.raises(TrainingError, match="expected init '.*' as in the state"):
        made(out, config={}, init=other, epochs=2, overwrite=False, resume=True)
    assert same(begin(resume=True), straight)


def test_a_fitted_mixture_stays_fitted(tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    options = {"config": {**MAP, "components": 2}, "shape": (1, 16, 16)}
    assert made(first, "gmvae", epochs=3, **options).fitted_in == 3
    again = made(out, "gmvae", init=first, epochs=1, lr=1e-12, **options)
    assert again.fitted_in != 0
    before, after = (checkpoint.load(path).prior.state_dict() for path in (first, out))
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
    again.train()
    again.begin_epoch(2, 9, None)  # the next epoch of a long run, which needs no data
    assert again._kl_weight == 1.0


def test_robust_training_begins_where_elbo_ended(tmp_path: Path) -> None:
    first, out = tmp_path / "first.safetensors", tmp_path / "out.safetensors"
    train("vae", "demo:40", first, config=SMALL, epochs=1)
    robust = train("vae", "demo:40", out, init=first, recipe="robust", classifier=trained("net"), epochs=1)
    assert robust.config == checkpoint.load(first).config
