"""``--output`` and ``--output-kind`` of the commands that take a classifier."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from binary_nets import Binary, as_onnx, pullovers_and_coats

import purifier

MODEL = """
from binary_nets import Binary
def probability(): return Binary("binary-probability")
def features(): return Binary("probabilities", features=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    as_onnx(Binary(features=True), path, ("feat", "out"))
    return path


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a classifier as a factory and as ONNX, and two-class data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_outputs_model.py").write_text(MODEL)
    shutil.copy(model, tmp_path)
    data = pullovers_and_coats(40)
    pixels, labels = data.batch(range(40))
    np.savez(tmp_path / "data.npz", images=pixels.numpy(), labels=labels.numpy())
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        ("--classifier", "cli_outputs_model:probability", "--output-kind", "binary-probability"),
        ("--classifier", "cli_outputs_model:features", "--output-kind", "probabilities", "--output", "out"),
        ("--classifier", "net.onnx", "--output-kind", "binary-probability", "--output", "1"),
    ],
)
def test_audit_reads_the_named_output_as_its_kind(options, command, folder):
    given = (
        "audit",
        "--purifier",
        "blur",
        "--data",
        "npz:data.npz",
        "--out",
        "found",
        "--attack",
        "none",
        "--overwrite",
    )
    code, _, complaint = command(*given, *options)
    assert code in (0, 3), complaint  # the classifier may be no better than chance
    report = purifier.AuditReport.load("found")
    pixels, labels = pullovers_and_coats(40).batch(range(40))
    right = (Binary("logits")(pixels).argmax(1) == labels).double().mean().item()
    shares = {row.model: row.result.share for row in report.rows}
    assert shares["undefended"] == pytest.approx(right)
    assert options[3] == report.classifier["output_kind"]
    assert report.command is not None and command(*report.command[1:])[0] == code  # it has both options
    assert purifier.AuditReport.load("found").classifier == report.classifier


def test_train_and_export_take_them_too(command, folder):
    sigmoid = ("--classifier", "cli_outputs_model:probability", "--output-kind", "binary-probability")
    code, _, complaint = command(
        *("train", "vae", "--data", "npz:data.npz", "--out", "vae.safetensors", "--recipe", "robust:eps=0.05"),
        *("--epochs", 1, "--set", "channels=4", "--set", "latent=3", "--precision", "float32", *sigmoid),
    )
    assert code == 0, complaint
    stored = purifier.load("vae.safetensors").provenance["classifier"]["output"]
    assert stored == {"which": None, "kind": "binary-probability"}
    blur = purifier.load("blur")
    blur.provenance = {
        "calibration": {"fpr": 0.1, "threshold": 0.02, "data": "x", "count": 9, "quantiles": [0.0] * 101}
    }
    purifier.save(blur, "blur.safetensors")
    code, _, complaint = command(
        *("export", "--purifier", "blur.safetensors", "--out", "guarded.onnx", "--classifier", "net.onnx"),
        *("--output", "out", "--output-kind", "binary-probability", "--on-reject", "abstain", "--abstain", 1),
        *("--image-shape", "1x28x28"),
    )
    assert code == 0, complaint
    session = onnxruntime.InferenceSession("guarded.onnx", providers=["CPUExecutionProvider"])
    pixels = np.concatenate([np.zeros((1, 1, 28, 28)), np.random.default_rng(0).random((1, 1, 28, 28))])
    features, answer = session.run(None, {"images": pixels.astype(np.float32)})
    assert np.isfinite(features).all() and 0 < answer[0, 0] < 1 and answer[1, 0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "2 outputs of the classifier can be its logits: 0: 'feat' float32 (2, 10), 1: 'out' float32 (2, 1)"),
        (("--output", "out"), "--output-kind on the command line"),
        (("--output", "score"), "the classifier has no output 'score'; it returns 0: 'feat'"),
        (("--output", "score"), "; choose one with --output"),
        (("--output", "7"), "no output at position 7; it returns 0: 'feat'"),
        (("--output", ""), "--output: expected a position such as 1 or a name such as logits, got nothing"),
        (("--output", "-1"), "output: expected a position of 0 or more, got -1"),
        (("--output", "out", "--output-kind", "logits"), "one number per image"),
        (("--output", "out", "--output-kind", "sigmoid"), "is not one of"),
    ],
)
def test_outputs_that_do_not_fit_end_in_exit_code_2(options, message, command, folder):
    given = (
        "audit",
        "--classifier",
        "net.onnx",
        "--purifier",
        "blur",
        "--data",
        "npz:data.npz",
        "--out",
        "found",
        "--overwrite",
    )
    code, _, complaint = command(*given, "--attack", "none", *options)
    assert code == 2
    assert message in " ".join(complaint.replace("│", " ").split())
