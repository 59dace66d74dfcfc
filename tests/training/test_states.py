"""States inside an epoch: what is saved when a run is interrupted or goes wrong, and what can be resumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nets import trained
from purifier.contracts import checkpoint
from purifier.contracts.purifier import purifiers
from purifier.data.images import ImageData
from purifier.errors import ConfigError, TrainingError
from purifier.training.loop import train
from purifier.training.optimisation import Follower
from purifier.training.progress import Progress
from purifier.training.recipe import Collapse
from training_helpers import Noisy, NoisyConfig, Recorder, same

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = ImageData("forty", torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10)
STATE = "p.train.safetensors"
CHECKED = "p.train-checked.safetensors"


class Explodes(Noisy):
    """Its loss is NaN from the 7th step on."""

    calls = 0

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        self.calls += 1
        terms = super().loss(pixels, target, noise)
        return {"good": terms["squares"], "bad": terms["squares"] * (float("nan") if self.calls >= 7 else 1)}


class Staged(Noisy):
    """Changes a buffer at the begin of each epoch, on which its loss depends."""

    def __init__(self, config: NoisyConfig) -> None:
        super().__init__(config)
        self.register_buffer("factor", torch.ones(()))

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        self.factor += torch.rand(())

    def figures(self) -> dict[str, float]:
        return {"factor": float(self.factor)}

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        return {name: term * self.factor for name, term in super().loss(pixels, target, noise).items()}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("purifier.training.progress.REPORT_STEPS", 1)
    made = {"noisy": Noisy, "explodes": Explodes, "staged": Staged, "recorder": Recorder}
    for name, cls in made.items():
        purifiers.register(name, cls)
    yield
    for name in made:
        purifiers.unregister(name)


def run(plugin: str, out: Path, **options: Any) -> Any:
    return train(plugin, DATA, out, **{"epochs": 3, "batch_size": 10, **options})


def stop_after(images: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.images >= images:
            raise error

    return progress


def described(path: Path) -> Any:
    return checkpoint.read_tensors(path)[1]["purifier.training"]


@pytest.mark.parametrize("plugin", ["noisy", "staged"])
@pytest.mark.parametrize("images", [10, 40, 60])
def test_ctrl_c_in_python_saves_the_state(plugin: str, images: int, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(plugin, out, progress=stop_after(images))
    (note,) = stopped.value.__notes__
    assert f"epoch {1 + (images - 1) // 40}, step {1 + (images - 1) % 40 // 10}; go on with" in note
    seen: list[Progress] = []
    resumed = run(plugin, out, resume=True, progress=seen.append)
    assert (seen[0].images, seen[0].phase) == (images, "starting")
    assert same(resumed, run(plugin, tmp_path / "straight.safetensors"))


def test_ctrl_c_inside_an_update_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, steps, update = tmp_path / "p.safetensors", [], Follower.update

    def interrupted(follower: Follower, done: float) -> None:
        steps.append(done)
        if len(steps) == 6:
            raise KeyboardInterrupt
        update(follower, done)

    monkeypatch.setattr(Follower, "update", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run("noisy", out)
    assert "holds it up to the end of epoch 1; go on" in stopped.value.__notes__[0]
    monkeypatch.undo()
    assert same(run("noisy", out, resume=True), run("noisy", tmp_path / "straight.safetensors"))


def test_ctrl_c_before_anything_is_learned_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Follower, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run("noisy", tmp_path / "p.safetensors")
    assert stopped.value.__notes__ == ["training was stopped; nothing has been saved yet"]
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(ZeroDivisionError):
        run("noisy", out, progress=stop_after(50, ZeroDivisionError))
    tensors, metadata = checkpoint.read_tensors(tmp_path / STATE)
    content = metadata["purifier.training"]
    assert content["entry"]["epoch"] == 1 and content.pop("checked") is True and "within" not in content
    checkpoint.write_tensors(tensors, tmp_path / STATE, metadata)
    assert same(run("noisy", out, resume=True), run("noisy", tmp_path / "straight.safetensors"))


def test_a_state_before_the_loss_became_nan_can_be_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    says = "not finite at epoch 2, step 3 .*; epoch 2 is saved up to step 2 in .*: resume with epochs=1 to make it"
    with pytest.raises(TrainingError, match=says):
        run("explodes", out, save_minutes=0)
    kept, _ = checkpoint.read_tensors(tmp_path / STATE)
    made = run("explodes", out, epochs=1, resume=True)
    assert made.provenance["metrics"]["epochs"] == 1.5
    assert all(torch.equal(value, kept[f"weights.{name}"]) for name, value in made.state_dict().items())
    assert [path.name for path in tmp_path.iterdir() if "train" in path.name] == []


def test_a_collapse_goes_back_to_the_last_checked_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purifier.training.check.SHARE", 1)
    seen: list[list[str]] = []

    def check(*_: object) -> tuple[dict[str, float], list[str]]:
        seen.append(sorted(path.name for path in tmp_path.glob("*train*")))
        if len(seen) == 3:
            raise Collapse("all is lost")
        return {"right": 1.0 / len(seen)}, []

    monkeypatch.setattr("purifier.training.epoch.check", check)
    options = {"recipe": "robust", "classifier": trained("net"), "precision": "float32", "save_minutes": 0}
    with pytest.raises(TrainingError, match="all is lost; epoch 2 is saved in .*: resume with epochs=2 to make"):
        run("recorder", tmp_path / "p.safetensors", **options)
    assert seen == [[STATE], [CHECKED, STATE], [CHECKED, STATE]]  # each epoch was saved before its check
    assert sorted(path.name for path in tmp_path.glob("*train*")) == [STATE]
    content = described(tmp_path / STATE)
    assert content["entry"]["figures"] == {"right": 0.5} and content["checked"] and "within" not in content
    made = run("recorder", tmp_path / "p.safetensors", **options, epochs=2, resume=True)
    assert made.provenance["metrics"]["right"] == 0.5


def test_another_runs_checked_state_is_not_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: object) -> tuple[dict[str, float], list[str]]:
        raise Collapse("all is lost")

    out = tmp_path / "p.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run("noisy", out, progress=stop_after(50))
    (tmp_path / STATE).rename(tmp_path / CHECKED)
    monkeypatch.setattr("purifier.training.epoch.check", check)
    options = {"recipe": "robust", "classifier": trained("net"), "precision": "float32", "save_minutes": 0, "epochs": 1}
    with pytest.raises(TrainingError, match="all is lost; nothing has been saved yet"):
        run("recorder", out, **options, overwrite=True)
    assert list(tmp_path.glob("*train*")) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": 4}, "expected a place in epoch 2, got"),
        ({"step": -1}, "expected a place in epoch 2, got"),
        ({"step": 2.0}, "expected a place in epoch 2, got"),
        ({"names": [1]}, "expected a place in epoch 2, got"),
        ({"seconds": None}, "expected a place in epoch 2, got"),
        ({"step": 3}, "expected the loss of 3 steps, (3, 1), got (2, 1)"),
        ({"step": 5, "rows": torch.ones(5, 1)}, "expected at most 4 steps in an epoch, got 5"),
        ({"rows": torch.full((2, 1), torch.nan)}, "expected the loss of 2 steps"),
    ],
)
def test_a_damaged_place_is_not_resumed(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run("noisy", out, progress=stop_after(60))
    tensors, metadata = checkpoint.read_tensors(tmp_path / STATE)
    tensors |= {name: value for name, value in changes.items() if name == "rows"}
    metadata["purifier.training"]["within"] |= {name: value for name, value in changes.items() if name != "rows"}
    checkpoint.write_tensors(tensors, tmp_path / STATE, metadata)
    with pytest.raises(TrainingError, match=f"is damaged: {re.escape(says)}.*start without resume"):
        run("noisy", out, resume=True)


@pytest.mark.parametrize("minutes", [-1, float("nan"), "5"])
def test_save_minutes_is_a_time(minutes: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_minutes: expected a number of minutes, 0 or more, got"):
        run("noisy", tmp_path / "p.safetensors", save_minutes=minutes)


def test_no_state_inside_epochs_unless_it_is_due(tmp_path: Path) -> None:
    out, seen = tmp_path / "p.safetensors", []
    run("noisy", out, progress=lambda now: seen.append((tmp_path / STATE).exists()), epochs=1)
    assert set(seen) == {False}
    with pytest.raises(ZeroDivisionError):
        run("noisy", out, progress=stop_after(20, ZeroDivisionError), save_minutes=0, overwrite=True)
    content = described(tmp_path / STATE)
    assert content["entry"] is None and content["within"]["step"] == 2
