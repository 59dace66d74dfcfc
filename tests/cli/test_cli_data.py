"""The data options of commands: folders of photos of any size, broken ones, class files, npz limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import purifier

Command = Callable[..., tuple[int, str, str]]
CLASSIFIER = """
import torch
from torch import nn

class Corner(nn.Module):
    # Class 0 is grey, 1 red, 2 green, 3 blue: the mean colour decides.
    def forward(self, images):
        means = images.mean((2, 3))
        return 8 * torch.cat([torch.full_like(means[:, :1], 0.45), means], 1)

def make():
    return Corner()
"""
SIZED = ("--resize", "10", "--crop", "8x8")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of many sizes in class folders `green` and `red`, one of them cut off, and a classifier of colours."""
    noise = np.random.default_rng(0)
    for name, channel in (("red", 0), ("green", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for place in range(6):
            size = (20 + 3 * place, 30 - 2 * place, 3)
            pixels = noise.integers(0, 60, size, dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{place}.jpg", quality=95)
    torn = tmp_path / "photos" / "red" / "5.jpg"
    torn.write_bytes(torn.read_bytes()[:400])
    (tmp_path / "classes.txt").write_text("grey\nred\ngreen\nblue\n")
    (tmp_path / "cli_data_colours.py").write_text(CLASSIFIER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def audited(photos: Path, command: Command, *options: str) -> tuple[int, dict, str, str]:
    given = ("--classifier", "cli_data_colours:make", "--purifier", "none", "--attack", "none", "--out", "found")
    code, shown, complaint = command("audit", *given, *SIZED, *options)
    report = photos / "found" / "report.json"
    return code, json.loads(report.read_text()) if report.exists() else {}, shown, complaint


def test_an_audit_of_photos_with_a_class_file(photos: Path, command: Command) -> None:
    code, report, _, complaint = audited(photos, command, "--data", "folder:photos", "--classes", "classes.txt")
    assert (code, report) == (2, {})
    assert "cannot read image photos/red/5.jpg" in complaint and "--skip-bad" in complaint
    options = ("--data", "folder:photos", "--classes", "classes.txt", "--skip-bad")
    code, report, shown, complaint = audited(photos, command, *options)
    assert code == 0, complaint
    assert complaint == "left out 1 image that cannot be read: photos/red/5.jpg\n"
    assert (report["data"]["count"], report["data"]["skipped"]) == (11, 1)
    assert report["data"]["classes"] == {"1": 5, "2": 6}
    assert report["data"]["framing"] == {"resize": 10, "crop": [8, 8], "interpolation": "bilinear"}
    assert report["rows"][0]["correct"] == 11
    assert "1 image left out that cannot be read" in shown


def test_without_the_class_file_the_labels_do_not_fit(photos: Path, command: Command) -> None:
    code, report, shown, _ = audited(photos, command, "--data", "folder:photos", "--skip-bad")
    assert report["data"]["classes"] == {"0": 6, "1": 5}
    assert code == 3 and "flag at-chance" in shown


def test_an_audit_of_photos_without_labels(photos: Path, command: Command) -> None:
    code, report, shown, complaint = audited(photos, command, "--data", "folder:photos/green")
    assert report["data"]["labels"] == "answers of the undefended classifier", complaint
    assert "agreement" in shown and "accuracy" not in shown.split("flag")[0]
    assert code == 3 and "flag at-chance" in shown  # it answers green for all of them
    report_again = command("report", "found")[1]
    assert "agreement" in report_again


def test_labels_can_be_left_out(photos: Path, command: Command) -> None:
    data = ("--data", "folder:photos", "--skip-bad")
    code, report, shown, complaint = audited(photos, command, *data, "--no-labels")
    assert report["data"]["labels"] == "answers of the undefended classifier", complaint
    assert (code, report["data"]["count"], report["rows"][0]["correct"]) == (0, 11, 11)
    assert "agreement" in shown and "accuracy" not in shown
    code, _, complaint = command(
        *("train", "gmvae", *data, *SIZED, "--no-labels", "--out", "p.safetensors", "--set", "labelled=true")
    )
    assert code == 2 and "learns from labels" in complaint


def test_photos_are_trained_on_calibrated_with_and_purified(photos: Path, command: Command) -> None:
    data = ("--data", "folder:photos", "--skip-bad", *SIZED)
    small = ("--set", "channels=2", "--set", "latent=4", "--epochs", "1", "--batch-size", "4")
    code, _, complaint = command("train", "vae", *data, "--out", "p.safetensors", *small)
    assert code == 0, complaint
    assert purifier.load("p.safetensors").config.image_shape == (3, 8, 8)
    settings = json.loads(Path("p.log.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["framing"] == {"resize": 10, "crop": [8, 8], "interpolation": "bilinear"}  # a resumed run needs it
    assert command("calibrate", "p.safetensors", *data, "--fpr", "0.2")[0] == 0
    code, shown, complaint = command(
        "purify", "p.safetensors", "photos/red/0.jpg", "folder:photos/green", *SIZED, "--out", "grid.png"
    )
    assert code == 0, complaint
    assert shown.splitlines()[0].startswith("0.jpg") and "folder:photos/green[5]" in shown
    code, _, complaint = command("purify", "p.safetensors", "photos/red/0.jpg", "--out", "grid.png")
    assert code == 2 and "give --resize and --crop" in complaint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data", "folder:photos", "--resize", "big"), "resize: expected a number of pixels"),
        (("--data", "demo:3"), "resize (--resize) is for folder:DIR, but the data is 'demo:3'"),
        (("--data", "folder:photos", "--classes", "none.txt"), "cannot read classes none.txt"),
        (("--data", "folder:photos", "--skip-bad", "--classes", "cli_data_colours.py"), "'green' is no line of the"),
        (("--data", "folder:photos", "--max-bytes", "5"), "--max-bytes is for npz:FILE"),
    ],
)
def test_data_options_that_do_not_fit(photos: Path, command: Command, options: tuple[str, ...], says: str) -> None:
    code, _, _, complaint = audited(photos, command, *options)
    assert code == 2 and says in complaint


def test_npz_limits_can_be_raised(photos: Path, command: Command) -> None:
    np.savez_compressed("set.npz", images=np.zeros((4, 3, 8, 8), dtype=np.uint8), labels=np.zeros(4, dtype=int))
    given = ("--classifier", "cli_data_colours:make", "--purifier", "none", "--attack", "none", "--out", "found")
    code, _, complaint = command("audit", *given, "--data", "npz:set.npz", "--max-bytes", "100")
    assert code == 2 and "bytes once decompressed" in complaint
    assert command("audit", *given, "--data", "npz:set.npz", "--max-bytes", "10000")[0] == 3
