"""A guard as a ``.pt2`` program that runs with torch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from onnx_models import linear
from purifier.errors import ConfigError, ExportError

ALONE = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "purifier":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
images, expected = torch.load(sys.argv[2])
facts = {"purifier.plugin": ""}
found = torch.export.load(sys.argv[1], extra_files=facts).module()(images)
torch.testing.assert_close(found, expected)
assert facts["purifier.plugin"] == "vae", facts
assert not any(name.split(".")[0] == "purifier" for name in sys.modules)
"""


def loaded(path: Path) -> Any:
    return torch.export.load(path).module()


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(count))


def test_the_file_answers_as_the_guard_without_purifier(tmp_path: Path) -> None:
    guarded = purifier.guard("demo", "demo")
    report = purifier.export(guarded, tmp_path / "guard.pt2", format="torch")
    assert (report.format, report.opset, report.size) == ("torch", None, report.path.stat().st_size)
    assert set(report.max_error) == {1, 2, 7} and max(report.max_error.values()) < 1e-5
    with torch.no_grad():
        torch.save((images(5), guarded(images(5))), tmp_path / "expected.pt")
    subprocess.run(
        [sys.executable, "-c", ALONE, str(report.path), str(tmp_path / "expected.pt")],
        check=True,
        timeout=120,
        cwd=tmp_path,
    )


def test_the_same_guard_makes_the_same_bytes_without_places(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    first, second = (purifier.export(guarded, tmp_path / name, format="torch").path.read_bytes() for name in "ab")
    assert first == second
    for place in (str(Path(purifier.__file__).parent), sys.prefix, str(Path.home())):
        assert place.encode() not in first


def test_a_bad_image_gets_no_answer_and_the_others_do(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    program = loaded(purifier.export(guarded, tmp_path / "guard.pt2", format="torch").path)
    given = images(3)
    given[1, 0, 4, 4] = torch.nan
    found = program(given)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], guarded(images(3)[[0, 2]]))


def test_preprocessing_score_and_rejection_are_in_the_file(tmp_path: Path) -> None:
    filter = purifier.load("demo-plain")
    purifier.calibrate(filter, "demo:100", fpr=0.2)
    options: dict[str, Any] = {"score": True, "on_reject": "flag", "preprocessing": {"mean": [0.3], "std": [0.2]}}
    guarded = purifier.guard(trained("net"), filter, **options)
    program = loaded(purifier.export(guarded, tmp_path / "guard.pt2", format="torch").path)
    pixels = purifier.load_data("demo:20").batch(range(20))[0]
    given = (torch.cat([pixels, images(4)]) - 0.3) / 0.2
    for found, wanted in zip(program(given), guarded(given), strict=True):
        torch.testing.assert_close(found, wanted)
    assert 4 <= int(program(given)[2].sum()) < 24


class InDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = trained("net")

    def forward(self, *, photo: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(photo), "label": self.inner(photo).argmax(1)}


def test_inputs_by_keyword_and_outputs_in_containers_stay(tmp_path: Path) -> None:
    guarded = purifier.guard(InDict(), "demo-plain", input="photo")
    program = loaded(purifier.export(guarded, tmp_path / "guard.pt2", format="torch").path)
    found = program(photo=images(4))
    assert list(found) == ["logits", "label"] and found["label"].tolist() == found["logits"].argmax(1).tolist()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"image_shape": (28, 28)}, ConfigError, r"image_shape: expected \(C, H, W\)"),
        ({"batches": (0,)}, ConfigError, "batches: expected positive batch sizes"),
        ({"tolerance": -1}, ConfigError, "tolerance: expected a number, 0 or more"),
        ({"opset": 18}, ConfigError, "exporter 'torch' has no option 'opset'"),
    ],
)
def test_wrong_options_are_errors(options: Any, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        purifier.export(purifier.guard(trained("net"), "demo-plain"), tmp_path / "g.pt2", format="torch", **options)
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = trained("net")

    def forward(self, pixels: Tensor) -> Tensor:
        if float(pixels.sum()) < -1:
            raise RuntimeError
        logits: Tensor = self.inner(pixels)
        return logits


@pytest.mark.parametrize(
    ("guarded", "says"),
    [
        (
            lambda: purifier.guard(linear(), "blur", image_shape=(3, 8, 8)),
            "no torch module; export it with the format onnx",
        ),
        (lambda: purifier.guard(trained("net"), "identity"), "does not fix the images' shape"),
        (lambda: purifier.guard(Branching(), "demo-plain"), "torch cannot export Branching"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(guarded: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        purifier.export(guarded(), tmp_path / "guard.pt2", format="torch")
    assert not list(tmp_path.iterdir())


def test_an_exported_program_is_a_classifier_that_can_be_audited(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    path = purifier.export(guarded, tmp_path / "guard.pt2", format="torch").path
    alone = purifier.audit(str(path), "demo:20", attacks=["pgd:steps=5"], probes=6)
    whole = purifier.audit(guarded, "demo:20", attacks=["pgd:steps=5"], routes=["exact"], probes=6)
    ours = [row.result for row in whole.rows if row.model == "guarded"]
    assert [row.result for row in alone.rows] == ours
