"""Checkpoints: round trips, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save_file

import purifier
from purifier.classifiers.loading import load_classifier
from purifier.contracts.checkpoint import read_tensors
from purifier.errors import CheckpointError, ConfigError, OutputError, PluginError, SpecError

SMALL = "vae:image_shape=1x28x28,channels=4,latent=8"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return purifier.save(purifier.load(SMALL), tmp_path / "small.safetensors", recipe="elbo", seed=3)


def test_round_trip_keeps_weights_config_and_provenance(checkpoint: Path, tmp_path: Path) -> None:
    first = purifier.load(checkpoint)
    copy = purifier.load(purifier.save(first, tmp_path / "copy.safetensors"))
    assert all(torch.equal(copy.state_dict()[key], value) for key, value in first.state_dict().items())
    assert copy.config == first.config
    assert not copy.training
    assert copy.provenance["recipe"] == "elbo" and copy.provenance["seed"] == 3
    assert copy.provenance["plugin"] == "vae" and "adversarial-purifier" in copy.provenance["version"]
    assert copy.provenance["file"] == "copy.safetensors" and len(copy.provenance["sha256"]) == 64


def test_loading_leaves_torchs_random_state_alone() -> None:
    state = torch.get_rng_state()
    purifier.load(SMALL)
    assert torch.equal(torch.get_rng_state(), state)


def rewrite(path: Path, **changes: object) -> None:
    vae = purifier.load(path)
    description = {"format": 1, "plugin": "vae", "config": dataclasses.asdict(vae.config), **changes}
    save_file(vae.state_dict(), path, {"purifier": json.dumps(description)})


def test_damaged_and_foreign_files_are_errors(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    cases = {
        "truncated": (whole[: len(whole) // 2], "truncated, damaged or not safetensors"),
        "empty": (b"", "truncated, damaged or not safetensors"),
        "text": (b"hello, world, this is no checkpoint", "truncated, damaged or not safetensors"),
        "zip": (b"PK\x03\x04" + whole[:100], "is a pickle, which can run code"),
        "pickle": (pickle.dumps({"weights": 1}), "is a pickle, which can run code"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            purifier.load(path)
        assert raised.value.path == path
    with pytest.raises(CheckpointError, match="no file absent.safetensors; give the path of an existing file"):
        purifier.load("absent.safetensors")
    with pytest.raises(CheckpointError, match="no file absent.pt; give the path of an existing file"):
        load_classifier("torch.nn:Identity", weights="absent.pt")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*folder.safetensors: it is not a regular file"):
        purifier.load(tmp_path / "folder.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a purifier checkpoint: its metadata names no plugin"):
        purifier.load(tmp_path / "foreign.safetensors")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        purifier.load(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        purifier.load(tmp_path)


def test_metadata_that_does_not_fit_is_an_error(checkpoint: Path) -> None:
    config = dataclasses.asdict(purifier.load(checkpoint).config)
    for changes, error, message in [
        ({"format": 99}, CheckpointError, "expected checkpoint format 1, got 99"),
        ({"plugin": "acme"}, PluginError, "no plugin 'acme'"),
        (
            {"config": {**config, "latent": 16}},
            CheckpointError,
            r"does not fit plugin 'vae'[\s\S]*size mismatch",
        ),
        ({"plugin": "blur", "config": {"sigma": 10**400}}, CheckpointError, "'sigma': expected float"),
        ({"config": {**config, "width": 3}}, CheckpointError, "no option 'width'"),
        ({"config": None}, CheckpointError, "'config': expected dict, got None"),
        ({"config": [1]}, CheckpointError, r"'config': expected dict, got \[1\]"),
        ({"plugin": 7}, CheckpointError, "'plugin': expected str, got 7"),
        ({"format": [1]}, CheckpointError, r"'format': expected int, got \[1\]"),
        ({"config": {**config, "channels": 10**9}}, CheckpointError, "weights, expected at most"),
        # Could be allocated, by somebody with the memory.
        ({"config": {**config, "channels": 3000}}, CheckpointError, r"does not fit[\s\S]*size mismatch"),
    ]:
        kept = checkpoint.read_bytes()
        rewrite(checkpoint, **changes)
        with pytest.raises(error, match=message):
            purifier.load(checkpoint)
        checkpoint.write_bytes(kept)


def test_nan_weights_are_errors(checkpoint: Path) -> None:
    vae = purifier.load(checkpoint)
    with torch.no_grad():
        next(vae.parameters()).fill_(float("nan"))
    purifier.save(vae, checkpoint)
    with pytest.raises(CheckpointError, match="hold NaN or infinity; train it again"):
        purifier.load(checkpoint)


def test_a_checkpoint_can_be_read_by_others_as_the_umask_says(checkpoint: Path) -> None:
    other = checkpoint.with_name("plain.txt")
    other.write_text("")
    assert checkpoint.stat().st_mode == other.stat().st_mode


def test_saving_a_guard_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a purifier, got GuardedModule; for a guard, save its .purifier"):
        purifier.save(purifier.guard("demo", "demo"), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        purifier.save(purifier.load(SMALL), tmp_path / "file" / "x.safetensors")


@dataclasses.dataclass(frozen=True)
class WideConfig:
    size: int


class Wide(purifier.Purifier):
    """Of any size, unlike the built-ins, which reject the absurd themselves."""

    Config, gradient = WideConfig, "exact"

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.size, config.size)

    def purify(self, pixels, noise=None):
        return pixels


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (10**15, r"cannot be built with these options \(.*overflow"),
        (10**7, r"cannot be built with these options \(.*allocate"),
    ],
)
def test_absurd_sizes_are_errors(size: int, message: str) -> None:
    purifier.purifiers.register("wide", Wide)
    try:
        with pytest.raises(ConfigError, match=message):
            purifier.load(f"wide:size={size}")
    finally:
        purifier.purifiers.unregister("wide")


class Stubborn(purifier.Purifier):
    """Reads a number of its own while it is built, which the meta device does not allow."""

    Config = type(purifier.load("identity").config)
    gradient = "exact"

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.total = self.weight.sum().item()

    def purify(self, pixels, noise=None):
        return pixels * self.weight[0]


def test_a_plugin_that_cannot_be_built_without_memory_is_loaded_all_the_same(tmp_path: Path) -> None:
    purifier.purifiers.register("stubborn", Stubborn)
    try:
        made = Stubborn(Stubborn.Config())
        torch.nn.init.constant_(made.weight, 0.5)
        loaded = purifier.load(purifier.save(made, tmp_path / "stubborn.safetensors"))
    finally:
        purifier.purifiers.unregister("stubborn")
    assert loaded.total == 3
    assert loaded.weight.tolist() == [0.5, 0.5, 0.5]


def test_a_spec_may_be_too_long_for_a_file_name() -> None:
    with pytest.raises(ConfigError, match="sigma"):
        purifier.load(f"blur:sigma={'x' * 5000}")


def test_bad_specs_are_errors() -> None:
    with pytest.raises(SpecError, match="expected NAME:key=value"):
        purifier.load("vae:1x28x28")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x4B50])
def test_a_header_length_that_looks_like_a_pickle_loads(tmp_path: Path, length: int) -> None:
    """The first two bytes, the header's length, are those of a pickle or a zip file."""
    path = tmp_path / "a.safetensors"
    header = b'{"__metadata__":{"purifier":"3"}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header)
    assert read_tensors(path) == ({}, {"purifier": 3})


def test_the_hash_is_that_of_the_bytes_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = purifier.load(SMALL), purifier.load(SMALL)
    torch.nn.init.ones_(next(first.parameters()))
    purifier.save(first, tmp_path / "used.safetensors")
    expected = hashlib.sha256((tmp_path / "used.safetensors").read_bytes()).hexdigest()

    def replaced_meanwhile(content: bytes) -> dict[str, torch.Tensor]:
        purifier.save(second, tmp_path / "used.safetensors")
        return deserialize(content)

    monkeypatch.setattr("purifier.contracts.checkpoint.deserialize", replaced_meanwhile)
    loaded = purifier.load(tmp_path / "used.safetensors")
    assert next(loaded.parameters()).eq(1).all() and loaded.provenance["sha256"] == expected
