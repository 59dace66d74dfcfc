"""The command line as a whole: version, lists, errors with exit code 2 and no traceback, and the demo."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest

import purifier
from purifier.data import load_data


def test_version(command) -> None:
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith("purifier 0.")


def test_no_command_shows_help(command) -> None:
    _, out, err = command()
    assert "audit" in out + err and "guard" not in err.lower().split("traceback")


def test_list_shows_every_plugin(command) -> None:
    code, out, _ = command("list")
    assert code == 0
    for name in (*purifier.purifiers, *purifier.attacks, *purifier.exporters):
        assert name in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("audit --classifier demo --purifier absent.safetensors --data demo --out x", "no file absent.safetensors"),
        ("audit --classifier demo --purifier vea --data demo --out x", "no plugin 'vea'; did you mean 'vae'?"),
        ("audit --classifier resnet --purifier identity --data demo --out x", "cannot read MODEL 'resnet'"),
        ("audit --classifier demo --purifier identity --data nowhere --out x", "nowhere"),
        ("audit --classifier demo --purifier identity --data demo --attack dgp --out x", "no plugin 'dgp'"),
        ("audit --classifier demo --purifier identity --data demo --eps 3 --out x", "eps must be at most 1"),
        (
            "audit --classifier demo --purifier vae:image_shape=3x32x32 --data demo --out x",
            "expected images (N, 3, 32, 32)",
        ),
        ("export --classifier demo --purifier identity --out x.onnx", "--image-shape"),
        ("train identity --data demo --out x.safetensors", "nothing to train"),
        ("train vae --data demo --out x.onnx", "ending in .safetensors"),
        ("report absent", "cannot read absent"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*line.split())
    assert code == 2
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("line", ["audit", "nonsense", "train vae --epochs many --data demo --out x"])
def test_wrong_usage_is_exit_code_2(command, line: str) -> None:
    code, _, err = command(*line.split())
    assert code == 2
    assert "Usage" in err and "Traceback" not in err


def test_demo(command, tmp_path: Path) -> None:
    code, out, _ = command("demo", "--out", tmp_path / "made")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["guarded.onnx", "report.json", "strip.png"]
    assert "the same class as torch on 300 of 300 images" in out
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    figures = {(row["model"], row["attack"], row["route"]): row["accuracy"] for row in report["rows"]}
    assert figures["undefended", "none", None] > 0.88
    assert figures["undefended", "pgd", "exact"] < 0.1
    assert figures["guarded", "none", None] > 0.6
    # A plain VAE helps against who does not know it, and not against who does.
    assert figures["guarded", "pgd", "oblivious"] > figures["undefended", "pgd", "exact"] + 0.2
    assert figures["guarded", "pgd", "exact"] < figures["guarded", "pgd", "oblivious"] - 0.2
    pixels, _ = load_data("demo").batch(range(3))
    session = onnxruntime.InferenceSession(tmp_path / "made" / "guarded.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0].shape == (3, 10)


def test_assets_stay_small() -> None:
    folder = Path(purifier.checkpoint.__file__).parent / "assets"
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 6_000_000


def test_shipped_images_are_the_first_of_the_real_test_set(fashion) -> None:
    demo = load_data("demo")
    for shipped, real in zip(demo.batch(range(300)), fashion.batch(range(300)), strict=True):
        assert (shipped == real).all()
