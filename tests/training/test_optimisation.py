"""Schedules, averages, augmentation, and several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets import trained
from purifier.contracts.checkpoint import load
from purifier.contracts.purifier import Purifier
from purifier.data.loading import load_data
from purifier.seeding import SampleGenerator
from purifier.torch_tools.torchrun import Processes
from purifier.training import trial
from purifier.training.augmentation import augmented
from purifier.training.loop import train
from purifier.training.optimisation import Follower, Optimisation
from purifier.training.progress import Progress
from purifier.training.recipe import Recipe
from purifier.training.recipes import build_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 2, "latent": 4}


def test_the_cosine_schedule_rises_then_falls_to_zero() -> None:
    settings = Optimisation(lr=0.1, schedule="cosine")
    rates = [settings.rate(done / 100) for done in range(100)]
    assert max(rates) == pytest.approx(0.1 * (1 + math.cos(math.pi / 10)) / 2) and rates.index(max(rates)) == 10
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[0] < 0.001 and rates[-1] < 0.001
    assert {Optimisation(lr=0.1).rate(done) for done in (0, 0.5, 0.99)} == {0.1}


def test_the_average_follows_slowly_after_a_quick_start() -> None:
    layer = nn.Linear(1, 1, bias=False)
    follower = Follower(layer, Optimisation(lr=0.1, ema=0.5))
    expected = None
    for step in range(8):
        follower.backward(layer.weight.sum())
        follower.update(0)
        decay = min(0.5, (1 + step) / (10 + step))
        here = layer.weight.item()
        expected = here if expected is None else decay * expected + (1 - decay) * here
        assert follower.result.weight.item() == pytest.approx(expected, abs=1e-6)
    assert follower.result.weight.item() > layer.weight.item() + 0.01
    assert Follower(layer, Optimisation()).result is layer


def test_clipping_bounds_the_gradient_of_all_weights_together() -> None:
    layer = nn.Linear(2, 3)
    follower = Follower(layer, Optimisation(clip=0.5))
    follower.backward(1000 * layer(torch.ones(1, 2)).sum())
    follower.update(0)
    total = torch.cat([weight.grad.flatten() for weight in layer.parameters()]).norm()
    assert total.item() == pytest.approx(0.5, rel=1e-4)


def test_augmentation_moves_whole_images_the_same_in_any_batch() -> None:
    pixels = load_data("fashion-mnist:train:200").batch(range(200))[0]
    for how in ("none", "shift", "flip"):
        moved = augmented(pixels, SampleGenerator(4, range(200)), how)
        assert torch.equal(augmented(pixels[50:60], SampleGenerator(4, range(50, 60)), how), moved[50:60])
        padded = nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
        flips = 0
        for image, whole, bare in zip(moved, padded, pixels, strict=True):
            windows = [whole[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
            # Mirrored, then moved: its window is one of the mirrored image's.
            mirrored = nn.functional.pad(bare.flip(2)[None], (2, 2, 2, 2), mode="replicate")[0]
            others = [mirrored[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
            straight = any(torch.equal(image, window) for window in windows)
            assert straight or any(torch.equal(image, window) for window in others)
            flips += not straight
        assert (70 < flips < 130) == (how == "flip") and (flips == 0) == (how != "flip")
        assert torch.equal(moved, pixels) == (how == "none")


@pytest.mark.parametrize(("side", "most"), [(16, 2), (28, 3)])
def test_a_crop_is_a_window_of_the_image_padded_by_an_eighth(side: int, most: int) -> None:
    pixels = load_data("fashion-mnist:train:100").batch(range(100))[0][:, :, :side, :side]
    moved = augmented(pixels, SampleGenerator(4, range(100)), "crop")
    assert torch.equal(augmented(pixels[50:60], SampleGenerator(4, range(50, 60)), "crop"), moved[50:60])
    places = set()
    for image, bare in zip(moved, pixels, strict=True):
        windows = {
            (flip, y, x): whole[:, y : y + side, x : x + side]
            for flip in (False, True)
            for whole in nn.functional.pad((bare.flip(2) if flip else bare)[None], (most,) * 4, mode="reflect")
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
        }
        found = [place for place, window in windows.items() if torch.equal(image, window)]
        assert found
        places.add(found[0])
    assert len({flip for flip, _, _ in places}) == 2
    assert {y for _, y, _ in places} == {x for _, _, x in places} == set(range(2 * most + 1))


class Overhears(nn.Module):
    """A classifier that records the precision it is called in, behind a convolution in groups if there are any."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.net, self.heard, self.groups = trained("net"), [False], groups
        self.register_buffer("kernel", torch.ones(groups, 1, 1, 1) / groups)

    def forward(self, pixels: Tensor) -> Tensor:
        self.heard.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        if self.groups > 1:
            pixels = F.conv2d(pixels.repeat(1, self.groups, 1, 1), self.kernel, groups=self.groups).sum(1, keepdim=True)
        return self.net(pixels)


@pytest.mark.parametrize(
    ("has", "gain", "groups", "expected"),
    [
        ({}, 2.0, 1, "float32"),
        ({"avx512_bf16": True}, 0.6, 1, "float32"),
        ({"avx512_bf16": True}, 2.0, 1, "bfloat16"),
        ({"avx512_bf16": True}, 2.0, 4, "float32"),
        ({"amx_bf16": True}, 0.6, 4, "bfloat16"),
    ],
)
def test_bfloat16_only_where_it_is_faster(
    has: dict[str, bool], gain: float, groups: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "gain_of_convolution", lambda: gain)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, **has})
    out = tmp_path / "a.safetensors"
    classifier = Overhears(groups)
    train("vae", "demo:20", out, config=SMALL, recipe="robust", classifier=classifier, epochs=1)
    assert _log(tmp_path / "a.log.jsonl")[0]["settings"]["precision"] == expected
    assert any(classifier.heard) == (expected == "bfloat16")
    for given in ("float32", "bfloat16"):
        settings = Optimisation(precision=given)
        assert settings.on(torch.device("cpu"), None, lambda: pytest.fail("not to be asked"), Processes()) == settings


def test_finding_out_whether_bfloat16_gains_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "gain_of_convolution", lambda: 2.0)
    vae, data = load("vae:image_shape=1x28x28,channels=4,latent=4").train(), load_data("demo:8")
    before, drawn = {name: value.clone() for name, value in vae.state_dict().items()}, torch.get_rng_state()
    given = (build_recipe("elbo"), vae, data, None, torch.device("cpu"))
    assert trial.gains_by_bfloat16(*given)
    assert torch.equal(torch.get_rng_state(), drawn) and all(weight.grad is None for weight in vae.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    monkeypatch.setattr(Recipe, "memory_step", lambda *args: 1 / 0)
    assert not trial.gains_by_bfloat16(*given)


def test_a_convolution_is_timed() -> None:
    assert 0 < trial.gain_of_convolution() < math.inf


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_robust_run_resumes_bit_for_bit(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purifier.training.check.WATCHED", 20)
    monkeypatch.setattr("purifier.training.check.SHARE", 1)
    options = {
        "recipe": "robust:ramp=0.5",
        "classifier": trained("net"),
        "config": SMALL,
        "epochs": 3,
        "batch_size": 25,
        "augment": "flip",
        "optimizer": optimizer,
    }

    def stop(now: Progress) -> None:
        if now.epoch == 2:
            raise Stopped

    straight = train("vae", "fashion-mnist:train:60", tmp_path / "a.safetensors", **options)
    with pytest.raises(Stopped):
        train("vae", "fashion-mnist:train:60", tmp_path / "b.safetensors", **options, progress=stop)
    resumed = train("vae", "fashion-mnist:train:60", tmp_path / "b.safetensors", **options, resume=True)
    assert _same(straight, resumed)
    logs = [_log(tmp_path / f"{name}.log.jsonl") for name in "ab"]
    assert [entry.get("figures") for entry in logs[0]] == [entry.get("figures") for entry in logs[1]]


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _same(one: Purifier, other: Purifier) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


SCRIPT = """
import json
import os
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from nets import trained
from purifier.training.loop import train
from purifier.training.optimisation import Follower
lengths, update = [], Follower.update
def noted(follower, done):
    update(follower, done)
    lengths.append(float(sum(weight.grad.square().sum() for weight in follower.weights if weight.grad is not None)))
Follower.update = noted
for name, plugin, recipe in (
    ("elbo", "gmvae", "elbo"), ("denoise", "gmvae", "denoise:attacks=fgsm"), ("robust", "vae", "robust:eps=0.05")
):
    train(plugin, "fashion-mnist:train:67", sys.argv[1] + f"/{name}.safetensors", recipe=recipe, epochs=2,
          config={"channels": 2, "latent": 4} | ({"components": 3} if plugin == "gmvae" else {}), batch_size=22,
          classifier=None if recipe == "elbo" else trained("net"), precision="float32", lr=1e-2, clip=0)
with open(sys.argv[1] + f".{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(lengths, file)
"""


def test_every_image_belongs_to_one_process() -> None:
    for count in (2, 3, 5):
        for size in (1, 2, 7, 30):
            parts = [Processes(rank, count).share(range(size)) for rank in range(count)]
            seen = [index for indices, weight in parts if weight for index in indices]
            assert sorted(seen) == list(range(size)) and all(len(indices) for indices, _ in parts)
            assert sum(weight for _, weight in parts) == pytest.approx(1)
            assert all(weight == pytest.approx(len(indices) / size) for indices, weight in parts if weight)


@pytest.mark.integration
def test_two_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parents[1])
    logs: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [*(launcher if count > 1 else [sys.executable]), str(script), str(folder), here]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, timeout=300, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "Grad strides" not in done.stderr, done.stderr
        names = ("elbo", "denoise", "robust")
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            f"{name}{end}" for name in names for end in (".safetensors", ".log.jsonl")
        )
        logs[count] = {name: _log(folder / f"{name}.log.jsonl")[1:] for name in names}
    for name, alone in logs[1].items():
        for one, two in zip(alone, logs[2][name], strict=True):
            assert two["terms"] == pytest.approx(one["terms"], rel=2e-3), name
    alone, *shared = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert len(alone) == 18 and shared[0] == shared[1] == pytest.approx(alone, rel=0.02)
