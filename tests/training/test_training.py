"""Training on real images: reproducible, resumable bit for bit, and stopped when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from purifier.contracts import checkpoint
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import CheckpointError, TrainingError
from purifier.training.loop import train
from purifier.training.progress import Progress
from training_helpers import Noisy, NoisyConfig, same

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 2, "latent": 4}


class Explodes(Noisy):
    """Its loss is NaN from the 7th step on."""

    def __init__(self, config: NoisyConfig) -> None:
        super().__init__(config)
        self.calls = 0

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        self.calls += 1
        terms = super().loss(pixels, target, noise)
        return {"good": terms["squares"], "bad": terms["squares"] * (float("nan") if self.calls >= 7 else 1)}


class Poisoned(Noisy):
    """A finite loss with an infinite gradient: d sqrt(x) / dx at 0."""

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        return {"root": (self.purify(pixels, noise) * 0).sum().sqrt()}


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    made = {"noisy": Noisy, "explodes": Explodes, "poisoned": Poisoned}
    for name, cls in made.items():
        purifiers.register(name, cls)
    yield
    for name in made:
        purifiers.unregister(name)


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load_data("fashion-mnist:train:200")


class Stopped(Exception):
    """Stands for a kill in the middle of an epoch."""


def stop_in(epoch: int) -> object:
    def progress(now: Progress) -> None:
        if now.epoch == epoch:
            raise Stopped

    return progress


def read_log(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.with_name(f"{out.stem}.log.jsonl").read_text().splitlines()]


def test_vae_learns_and_logs_how(images: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "new" / "vae.safetensors"
    seen: list[Progress] = []
    trained = train("vae", images, out, config=SMALL, epochs=6, batch_size=32, lr=3e-3, seed=5, progress=seen.append)
    assert not trained.training
    assert trained.config.image_shape == (1, 28, 28)
    first, *epochs = read_log(out)
    assert first["settings"]["data"] == "fashion-mnist:train:200"
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in epochs] == [7, 14, 21, 28, 35, 42]
    losses = [entry["loss"] for entry in epochs]
    assert losses[-1] < 0.85 * losses[0]
    assert losses[-1] == pytest.approx(sum(epochs[-1]["terms"].values()))
    assert (seen[-1].images, seen[-1].total, seen[-1].epoch) == (1200, 1200, 6)
    assert sorted(path.name for path in out.parent.iterdir()) == ["vae.log.jsonl", "vae.safetensors"]
    loaded = checkpoint.load(out)
    assert same(loaded, trained)
    assert {key: loaded.provenance[key] for key in ("plugin", "recipe", "seed", "data")} == {
        "plugin": "vae",
        "recipe": "elbo",
        "seed": 5,
        "data": "fashion-mnist:train:200",
    }
    metrics = loaded.provenance["metrics"]
    assert {"reconstruction", "kl", "informative_latents", "epochs", "images_per_second"} == set(metrics)
    assert metrics["reconstruction"] == epochs[-1]["terms"]["reconstruction"]


@pytest.mark.parametrize("plugin", ["vae", "noisy"])
def test_the_seed_decides_everything(images: ImageData, tmp_path: Path, plugin: str) -> None:
    config = SMALL if plugin == "vae" else {}

    def run(seed: int) -> Purifier:
        return train(plugin, images, tmp_path / "p.safetensors", config=config, epochs=1, seed=seed, overwrite=True)

    torch.manual_seed(1)
    one = run(3)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert same(one, run(3))
    assert not same(one, run(4))
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "training moved the caller's random stream"


@pytest.mark.parametrize("plugin", ["vae", "noisy"])
@pytest.mark.parametrize("save_every", [1, 2])
def test_resume_is_bit_for_bit(images: ImageData, tmp_path: Path, plugin: str, save_every: int) -> None:
    options = {"config": SMALL if plugin == "vae" else {}, "epochs": 4, "batch_size": 64}
    straight = train(plugin, images, tmp_path / "straight.safetensors", **options)
    out = tmp_path / "resumed.safetensors"
    with pytest.raises(Stopped):
        train(plugin, images, out, **options, save_every=save_every, progress=stop_in(4))
    assert not out.exists() and (tmp_path / "resumed.train.safetensors").exists()
    assert [entry.get("epoch") for entry in read_log(out)] == [None, 1, 2, 3]
    epochs: list[int] = []
    resumed = train(plugin, images, out, **options, resume=True, progress=lambda now: epochs.append(now.epoch))
    assert sorted(set(epochs)) == ([4] if save_every == 1 else [3, 4])
    assert same(straight, resumed)
    assert [entry.get("epoch") for entry in read_log(out)] == [None, 1, 2, 3, 4]
    assert [entry["loss"] for entry in read_log(out)[1:]] == [
        entry["loss"] for entry in read_log(tmp_path / "straight.safetensors")[1:]
    ]
    assert not (tmp_path / "resumed.train.safetensors").exists()


CHILD = """
import sys, time
import torch
torch.set_num_threads(1)
from purifier.data.loading import load_data
from purifier.training.loop import train
train("vae", load_data("fashion-mnist:train:200"), sys.argv[1], config={"channels": 2, "latent": 4}, epochs=5,
      batch_size=50, progress=lambda now: time.sleep(0.1))
"""


@pytest.mark.integration
def test_killed_process_resumes_bit_for_bit(images: ImageData, tmp_path: Path) -> None:
    out, state = tmp_path / "killed.safetensors", tmp_path / "killed.train.safetensors"
    command = [sys.executable, "-c", CHILD, str(out)]
    with subprocess.Popen(command, env=os.environ.copy()) as child:
        deadline = time.monotonic() + 60
        while not state.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert state.exists() and not out.exists()
    options = {"config": SMALL, "epochs": 5, "batch_size": 50}
    epochs: list[int] = []
    resumed = train("vae", images, out, **options, resume=True, progress=lambda now: epochs.append(now.epoch))
    assert epochs[0] > 1 and epochs[-1] == 5
    assert same(resumed, train("vae", images, tmp_path / "straight.safetensors", **options))


def test_resume_needs_a_state_and_the_same_settings(images: ImageData, tmp_path: Path) -> None:
    out, state = tmp_path / "p.safetensors", tmp_path / "p.train.safetensors"
    with pytest.raises(TrainingError, match=r"nothing to resume: there is no training state .*start without resume"):
        train("noisy", images, out, resume=True)
    with pytest.raises(Stopped):
        train("noisy", images, out, epochs=3, batch_size=100, progress=stop_in(3))
    for changed, says in (
        ({"lr": 0.01}, "expected lr 0.001 as in the state, got 0.01"),
        ({"batch_size": 50}, "expected batch_size 100 as in the state, got 50"),
        ({"seed": 1}, "expected seed 0 as in the state, got 1"),
        ({"config": {"width": 9}}, "expected config {'width': 8} as in the state, got {'width': 9}"),
    ):
        with pytest.raises(TrainingError, match=f"cannot resume .*{says}"):
            train("noisy", images, out, **{"epochs": 3, "batch_size": 100, **changed}, resume=True)
    with pytest.raises(TrainingError, match="expected plugin 'noisy' as in the state, got 'vae'"):
        train("vae", images, out, batch_size=100, resume=True)
    with pytest.raises(TrainingError, match="expected data 'fashion-mnist:train:200' as in the state"):
        train("noisy", load_data("fashion-mnist:train:100"), out, batch_size=100, resume=True)
    with pytest.raises(TrainingError, match="already at epoch 2, expected at most 1"):
        train("noisy", images, out, epochs=1, batch_size=100, resume=True)
    whole = state.read_bytes()
    state.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        train("noisy", images, out, epochs=3, batch_size=100, resume=True)
    checkpoint.save(Noisy(NoisyConfig()), state)
    with pytest.raises(TrainingError, match="is not a training state"):
        train("noisy", images, out, epochs=3, batch_size=100, resume=True)
    state.write_bytes(whole)
    train("noisy", images, out, epochs=2, batch_size=100, resume=True)
    assert out.exists() and not state.exists()


def test_a_new_run_does_not_resume_an_old_one(images: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(Stopped):
        train("noisy", images, out, epochs=3, seed=1, progress=stop_in(3))
    again = train("noisy", images, out, epochs=1, seed=2, overwrite=True)
    assert same(again, train("noisy", images, tmp_path / "q.safetensors", epochs=1, seed=2))
    assert [entry.get("epoch") for entry in read_log(out)] == [None, 1]


def test_a_run_that_fails_at_once_leaves_a_good_checkpoint_and_its_log(images: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    train("noisy", images, out, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match="nothing has been saved yet"):
        train("poisoned", images, out, epochs=1, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_data_may_be_a_spec(images: ImageData, tmp_path: Path) -> None:
    named = train("noisy", "fashion-mnist:train:200", tmp_path / "p.safetensors", epochs=1)
    assert same(named, train("noisy", images, tmp_path / "q.safetensors", epochs=1))


def test_a_nan_loss_stops_training(images: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(TrainingError, match=r"not finite at epoch 2, step 3 \(good .*, bad nan\); .*epoch 1 is saved"):
        train("explodes", images, out, epochs=3, batch_size=50)
    kept, metadata = checkpoint.read_tensors(tmp_path / "p.train.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert metadata["purifier.training"]["entry"]["epoch"] == 1
    assert not out.exists()
    assert [entry.get("epoch") for entry in read_log(out)] == [None, 1]
    last = train("explodes", images, out, epochs=1, batch_size=50, resume=True)
    assert all(torch.equal(value, kept[f"weights.{name}"]) for name, value in last.state_dict().items())


def test_nan_weights_stop_training(images: ImageData, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"became NaN or infinite in epoch 1; .*lr below .*; nothing has been saved yet"
    ):
        train("poisoned", images, tmp_path / "p.safetensors", epochs=1, batch_size=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch_size", "steps"), [(1000, 1), (199, 1), (198, 2), (66, 4), (1, 200)])
def test_any_batch_size(images: ImageData, tmp_path: Path, batch_size: int, steps: int) -> None:
    out = tmp_path / "p.safetensors"
    train("noisy", images, out, config={"width": 1}, epochs=1, batch_size=batch_size)
    assert read_log(out)[1]["step"] == steps
