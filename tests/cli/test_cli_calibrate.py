from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import purifier
from purifier.contracts.checkpoint import annotate, checkpoint_path
from purifier.errors import CheckpointError
from purifier.rejection.calibration import calibration_of

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copy(str(files("purifier.assets") / "fashion-vae.safetensors"), tmp_path / "vae.safetensors"))


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object], bytes]:
    """Tensors, the description, and the bytes behind the header."""
    content = path.read_bytes()
    with safe_open(path, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        description = json.loads(opened.metadata()["purifier"])
    return tensors, description, content[8 + int.from_bytes(content[:8], "little") :]


def test_the_checkpoint_gains_a_calibration_and_nothing_else_changes(command: Command, checkpoint: Path) -> None:
    tensors, before, body = parts(checkpoint)
    code, shown, _ = command("calibrate", checkpoint, "--data", "demo:200", "--fpr", "0.1", "--batch-size", "64")
    assert code == 0
    after_tensors, after, after_body = parts(checkpoint)
    assert after_body == body
    assert all(torch.equal(after_tensors[key], value) for key, value in tensors.items())
    found = after.pop("calibration")
    assert after == before
    calibration = calibration_of(purifier.load(checkpoint))
    assert calibration is not None
    assert calibration.quantiles == tuple(found["quantiles"])
    assert f"threshold  {calibration.threshold:.6g}" in shown
    assert "demo:200, 200 images" in shown
    assert f"50%: {calibration.quantiles[50]:.4g}" in shown
    assert str(checkpoint) in shown
    assert [other.name for other in checkpoint.parent.iterdir()] == ["vae.safetensors"]


def test_out_leaves_the_checkpoint_unchanged(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    before, out = checkpoint.read_bytes(), tmp_path / "new" / "calibrated.safetensors"
    assert command("calibrate", checkpoint, "--data", "demo:50", "--out", out)[0] == 0
    assert checkpoint.read_bytes() == before
    assert parts(out)[2] == parts(checkpoint)[2]
    assert calibration_of(purifier.load(out)) is not None


def test_a_link_stays_a_link(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "current.safetensors"
    link.symlink_to(checkpoint)
    assert command("calibrate", link, "--data", "demo:50")[0] == 0
    assert link.is_symlink()
    assert calibration_of(purifier.load(checkpoint)) is not None


@pytest.mark.parametrize("spec", ["blur:sigma=2", "demo"])
def test_any_purifier_can_be_calibrated_into_a_new_file(spec: str, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.safetensors"
    assert command("calibrate", spec, "--data", "demo:50", "--out", out)[0] == 0
    made = purifier.load(out)
    assert calibration_of(made) is not None
    assert made.config == purifier.load(spec).config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blur", "--data", "demo"], "CKPT: expected a checkpoint file, got 'blur'; name the checkpoint to write"),
        (["demo", "--data", "demo"], "expected a checkpoint file, got 'demo'"),
        (["nowhere.safetensors", "--data", "demo"], "no file nowhere.safetensors"),
        (["CKPT", "--data", "demo:10"], "fpr 0.05 needs at least 19 clean images, got 10"),
        (["CKPT", "--data", "demo", "--fpr", "5"], "fpr: expected a rate above 0 and below 1"),
        (["CKPT", "--data", "demo", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["CKPT", "--data", "npz:nowhere.npz"], "no file nowhere.npz"),
    ],
)
def test_bad_input_ends_in_exit_code_2(arguments: list[str], message: str, command: Command, checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    code, _, errors = command("calibrate", *(str(checkpoint) if word == "CKPT" else word for word in arguments))
    assert code == 2
    assert message in errors
    assert checkpoint.read_bytes() == before


def test_annotating_a_foreign_file_is_an_error(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"):
        path = tmp_path / "foreign.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not safetensors|is not a purifier checkpoint"):
            annotate(path, path, calibration={})
        assert path.read_bytes() == content


def test_only_checkpoint_specs_name_a_file(tmp_path: Path) -> None:
    there = tmp_path / "odd name"
    there.write_bytes(b"")
    assert checkpoint_path("vae.safetensors") == Path("vae.safetensors")
    assert checkpoint_path("a:b/vae.safetensors") == Path("a:b/vae.safetensors")
    assert checkpoint_path(str(there)) == there
    assert [checkpoint_path(spec) for spec in ("demo", "demo-plain", "blur", "latent:base=vae.safetensors")] == [
        None
    ] * 4
