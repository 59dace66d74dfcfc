"""MODEL specs of libraries on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

SPEC = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.savez("photos.npz", images=pixels, labels=np.arange(6) % 2)
    return tmp_path


def test_an_audit_uses_the_models_own_preprocessing_and_can_be_repeated(photos: Path, command) -> None:
    line = f"audit --classifier {SPEC} --random-weights --purifier none --data npz:photos.npz --attack none --out first"
    command(*line.split())
    report = json.loads((photos / "first" / "report.json").read_text())
    assert report["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert report["preprocessing"]["crop"] == 224
    words = report["command"]
    assert "--random-weights" in words and "True" not in words and "False" not in words
    again = [*(words[1:]), "--out", "again"]
    command(*again)
    repeated = json.loads((photos / "again" / "report.json").read_text())
    assert repeated["classifier"] == report["classifier"]
    assert repeated["rows"][0]["correct"] == report["rows"][0]["correct"]


def test_weights_of_a_fine_tuned_model(photos: Path, command) -> None:
    trained = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=2)
    torch.save({"model": trained.state_dict()}, "w.pth")
    line = f"audit --classifier {SPEC} --weights w.pth --purifier none --data npz:photos.npz --attack none --out out"
    command(*line.split())
    report = json.loads((photos / "out" / "report.json").read_text())
    assert report["classifier"]["spec"] == SPEC and report["classifier"]["weights_file"] == "w.pth"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (f"--classifier {SPEC} --weights w.pt --random-weights", "expected --weights or --random-weights, got both"),
        ("--classifier demo --random-weights", "--random-weights needs torchvision:NAME, timm:NAME, hf:FOLDER"),
        ("--classifier torchvision:resnet19", "torchvision has no model 'resnet19'"),
    ],
)
def test_a_classifier_that_cannot_be_loaded_is_an_error(rest: str, message: str, command, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    code, _, said = command("export", "--purifier", "identity", "--out", out, *rest.split())
    assert code == 2 and message in said and not out.exists()


def test_train_reads_photos_as_the_classifier_wants_them(photos: Path, command) -> None:
    for place in range(4):
        Image.fromarray(np.full((300, 260, 3), 60 * place, dtype=np.uint8)).save(_folder("jpgs") / f"{place}.png")
    line = (
        f"train vae --set channels=2 --set latent=2 --classifier {SPEC} "
        "--random-weights --data folder:jpgs --recipe robust:steps=1 --epochs 1 "
        "--batch-size 4 --out p.safetensors"
    )
    code, _, said = command(*line.split())
    assert code == 0, said
    log = json.loads((photos / "p.log.jsonl").read_text().splitlines()[0])["settings"]
    assert log["framing"]["crop"] == [224, 224] and log["config"]["image_shape"] == [3, 224, 224]


def _folder(name: str) -> Path:
    Path(name).mkdir(exist_ok=True)
    return Path(name)
