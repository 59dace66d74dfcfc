"""Errors of training, raised before anything is done or written."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from purifier.contracts import checkpoint
from purifier.contracts.checkpoint import read_tensors
from purifier.data.images import ImageData
from purifier.errors import ConfigError, OutputError, PluginError, SpecError, TrainingError
from purifier.exclusive import exclusive
from purifier.training.loop import train
from purifier.training.progress import Progress

IMAGES = ImageData("eight", torch.arange(8 * 16).view(8, 1, 4, 4) / 127, torch.zeros(8, dtype=torch.int64))


def too_late(now: Progress) -> None:
    raise AssertionError(f"training went on to {now}")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"plugin": "vea"}, PluginError, "did you mean 'vae'"),
        ({"plugin": "identity"}, TrainingError, "'identity' has nothing to train"),
        ({"plugin": "latent"}, ConfigError, "purifier 'latent' needs the option 'base'"),
        (
            {"plugin": "latent", "config": {"base": "demo-plain"}},
            ConfigError,
            r"expected the base's image_shape \(1, 28, 28\), got",
        ),
        ({"plugin": "gmvae", "config": {"components": 9}}, TrainingError, "9 components need at least as many images"),
        (
            {"plugin": "gmvae", "config": {"spatial": True, "labelled": True}},
            ConfigError,
            "leave spatial or labelled out",
        ),
        (
            {"plugin": "gmvae", "config": {"labelled": True}},
            TrainingError,
            "10 components need at least as many images",
        ),
        (
            {"plugin": "gmvae", "config": {"labelled": True, "components": 2}},
            TrainingError,
            "at least 2 images of each class, got 0 of class 1",
        ),
        ({"recipe": "magic"}, ConfigError, "no recipe 'magic'; the recipes are: elbo"),
        ({"recipe": "elbo:eps=0.1"}, ConfigError, "recipe 'elbo' has no option 'eps'"),
        ({"recipe": ""}, SpecError, "no plugin name"),
        (
            {"config": {"with": 1}},
            ConfigError,
            "purifier 'vae' has no option 'with'; its options are: image",
        ),
        ({"config": {"image_shape": "3x32x32"}}, ConfigError, "leave image_shape out"),
        ({"epochs": 0}, ConfigError, "epochs: expected a whole number, 1 or more, got 0"),
        ({"epochs": "2"}, ConfigError, "epochs: expected a whole number, 1 or more, got '2'"),
        ({"batch_size": 0}, ConfigError, "batch_size: expected a whole number, 1 or more, got 0"),
        ({"save_every": 1.5}, ConfigError, "save_every: expected a whole number, 1 or more, got 1.5"),
        ({"seed": None}, ConfigError, "seed: expected a whole number, got None"),
        ({"data": 8}, ConfigError, "data: expected a DATA spec, ImageData, .*, got int"),
        ({"data": "demo:0"}, SpecError, "expected a count of at least 1"),
        ({"lr": 0.0}, ConfigError, "lr: expected a positive number, got 0"),
        ({"lr": float("nan")}, ConfigError, "lr: expected a positive number, got nan"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' cannot be used"),
        ({"device": None}, ConfigError, "device: expected a name such as 'cpu', got None"),
        ({"device": "meta"}, ConfigError, "device 'meta' cannot be used"),
        ({"out": "p.pt"}, OutputError, "expected a name ending in .safetensors"),
        ({"out": "folder.safetensors"}, OutputError, "it is a folder"),
        ({"out": "q.train.safetensors"}, OutputError, "is for training states; give another name"),
        ({"out": f"{240 * 'p'}.safetensors"}, OutputError, "too long; choose a writable location"),
        ({"out": "logged.safetensors"}, OutputError, "logged.log.jsonl: it is a folder"),
        ({"out": "file/p.safetensors"}, OutputError, "cannot write .*choose a writable location"),
    ],
)
def test_errors_before_any_work(tmp_path: Path, options: dict[str, object], error: type[Exception], says: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "logged.log.jsonl").mkdir()
    (tmp_path / "file").write_text("in the way")
    given = {"plugin": "vae", "data": IMAGES, "out": "p.safetensors", **options}
    out = tmp_path / str(given.pop("out"))
    with pytest.raises(error, match=says):
        train(given.pop("plugin"), given.pop("data"), out, **given, progress=too_late)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors", "logged.log.jsonl"]


OPTIONS = {"config": {"channels": 1, "depth": 1, "latent": 1}, "batch_size": 8}
STATE = "p.train.safetensors"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its second epoch."""

    class Stopped(Exception):
        pass

    def stop(now: Progress) -> None:
        if now.epoch == 2:
            raise Stopped

    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        train("vae", IMAGES, folder / "p.safetensors", epochs=2, progress=stop, **OPTIONS)
    return folder


@pytest.mark.parametrize("content", [b"precious", b"", "checkpoint"])
def test_the_users_own_file_is_not_overwritten(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / STATE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        checkpoint.save(checkpoint.load("demo"), path)
    before = path.read_bytes()
    with pytest.raises(
        OutputError, match=r"exists and is not a training state.*move it, or give the checkpoint another name"
    ):
        train("vae", IMAGES, tmp_path / "p.safetensors", progress=too_late)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [STATE, "p.safetensors", "p.log.jsonl"])
def test_another_runs_files_are_replaced_on_request_only(tmp_path: Path, stopped: Path, name: str) -> None:
    content = (stopped / STATE).read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match="--overwrite"):
        train("vae", IMAGES, tmp_path / "p.safetensors", epochs=1, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == content
    train("vae", IMAGES, tmp_path / "p.safetensors", epochs=1, overwrite=True, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.log.jsonl", "p.safetensors"]


MOMENT = "optimizer.0.exp_avg"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("described", None, "is not a training state"),
        ("described", [], "is not a training state"),
        ("settings", None, "expected settings, got None"),
        ("settings", {}, "expected plugin None as in the state, got 'vae'"),
        ("entry", None, "expected the log entry of an epoch with its terms, got None"),
        ("entry", [], "expected the log entry of an epoch"),
        ("epoch", "7", "expected the log entry of an epoch"),
        ("epoch", 1.5, "expected the log entry of an epoch"),
        ("epoch", 0, "expected the log entry of an epoch"),
        ("terms", None, "expected the log entry of an epoch"),
        ("terms", {"kl": "low"}, "expected numbers in its log entry, got 'low'"),
        ("terms", {}, "expected terms and figures in its log entry, got {} and {}"),
        ("figures", [1], "and [1]"),
        ("figures", {"right": math.inf}, "expected numbers in its log entry, got inf"),
        ("images_per_second", None, "expected numbers in its log entry, got None"),
        (f"{MOMENT}_sq", None, f"{MOMENT}_sq: expected (1, 1, 3, 3) of torch.float32, got nothing"),
        (MOMENT, torch.zeros(3), f"{MOMENT}: expected (1, 1, 3, 3) of torch.float32, got (3,) of torch.float32"),
        (MOMENT, torch.full((1, 1, 3, 3), math.nan), f"{MOMENT} holds NaN or infinity"),
        ("optimizer.0.step", torch.tensor(-1.0), "optimizer.0.step: expected no negative numbers"),
        ("optimizer.x.step", torch.tensor(1.0), "optimizer.x.step: expected nothing, got ()"),
        ("weights.extra", torch.zeros(1), "weights.extra: expected nothing, got (1,)"),
    ],
)
def test_a_damaged_state_is_not_resumed(tmp_path: Path, stopped: Path, key: str, value: object, says: str) -> None:
    tensors, metadata = checkpoint.read_tensors(stopped / STATE)
    described = metadata["purifier.training"]
    if key == "described":
        metadata["purifier.training"] = value
    elif key in ("settings", "entry"):
        described[key] = value
    elif "." not in key:
        described["entry"][key] = value
    elif value is None:
        del tensors[key]
    else:
        tensors[key] = value
    checkpoint.write_tensors(tensors, tmp_path / STATE, metadata)
    with pytest.raises(TrainingError, match=f"{re.escape(says)}.*start without resume"):
        train("vae", IMAGES, tmp_path / "p.safetensors", epochs=2, resume=True, progress=too_late, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_a_log_that_is_not_text_does_not_stop_a_resume(tmp_path: Path, stopped: Path) -> None:
    shutil.copy(stopped / STATE, tmp_path)
    log = (stopped / "p.log.jsonl").read_bytes()
    (tmp_path / "p.log.jsonl").write_bytes(b"\xff\xfe\n" + 100_000 * b"[" + b"\n" + log)
    train("vae", IMAGES, tmp_path / "p.safetensors", epochs=2, resume=True, **OPTIONS)
    lines = (tmp_path / "p.log.jsonl").read_text().splitlines()
    assert [json.loads(line).get("epoch") for line in lines] == [None, 1, 2]


def test_a_purifier_found_by_descent_has_nothing_to_train(tmp_path: Path) -> None:
    data = ImageData("gray", torch.full((8, 1, 28, 28), 0.5), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(TrainingError, match="'latent' has nothing to train; use it as it is"):
        train("latent", data, tmp_path / "p.safetensors", config={"base": "demo-plain"}, progress=too_late)
    assert list(tmp_path.iterdir()) == []


def test_an_overflowing_optimizer_is_an_error_before_it_is_saved(tmp_path: Path) -> None:
    """Loss and weights are still finite when Adam's mean of squared gradients no longer is."""
    with pytest.raises(TrainingError, match="optimizer's state became NaN or infinite in epoch"):
        train("vae", "demo:64", tmp_path / "p.safetensors", config={"channels": 4, "latent": 4}, lr=1500.0, epochs=5)
    for state in tmp_path.glob("*.train.safetensors"):
        assert all(tensor.isfinite().all() for tensor in read_tensors(state)[0].values())


def test_two_runs_do_not_write_the_same_files(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    with exclusive(out):
        with pytest.raises(OutputError, match="another run is writing it"):
            train("vae", IMAGES, out, epochs=1, **OPTIONS)
        assert [path.name for path in tmp_path.iterdir()] == [".p.safetensors.lock"]
