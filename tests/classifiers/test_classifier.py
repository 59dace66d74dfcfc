"""MODEL specs, and logits from pixels whatever the classifier takes and returns."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from onnx import ModelProto
from safetensors.torch import save_file
from torch import Tensor, nn

from purifier import Preprocessing
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.pixel_classifier import pixel_classifier
from purifier.errors import CheckpointError, ClassifierError, PurifierError, SpecError

FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)
    def forward(self, x):
        return self.head(x.flatten(1))
def make(): return Net()
ready = Net()
def broken(): raise ValueError('no such width')
number = 3
def three(): return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "acme_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "acme_models", raising=False)
    return tmp_path


def test_a_factory_with_weights_of_both_kinds(folder: Path, images) -> None:
    state = {"head.weight": torch.randn(10, 784), "head.bias": torch.zeros(10)}
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    expected = images[0].flatten(1) @ state["head.weight"].T
    for name in ("w.safetensors", "w.pt"):
        module = load_classifier("acme_models:make", weights=name)
        assert isinstance(module, nn.Module) and not module.training
        torch.testing.assert_close(module(images[0]), expected)
    assert isinstance(load_classifier("acme_models:ready"), nn.Module)


def test_a_pickle_is_never_run(folder: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (folder / "harmed",))

    (folder / "w.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save({"head.weight": Bomb()}, folder / "zip.pt")
    (folder / "w.safetensors").write_bytes(pickle.dumps(Bomb()))
    for name, error in (
        ("w.pt", ClassifierError),
        ("zip.pt", ClassifierError),
        ("w.safetensors", CheckpointError),
    ):
        with pytest.raises(error):
            load_classifier("acme_models:make", weights=name)
    assert not (folder / "harmed").exists()


def test_torch_export_files(folder: Path, images) -> None:
    module = load_classifier("acme_models:make")
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(module, (images[0],), dynamic_shapes={"x": {0: batch}}), "net.pt2")
    loaded = load_classifier("net.pt2")
    torch.testing.assert_close(loaded(images[0][:5]), module(images[0][:5]))
    (folder / "bad.pt2").write_bytes(b"not an archive")
    with pytest.raises(ClassifierError, match=r"bad.pt2 cannot be read by torch.export.load"):
        load_classifier("bad.pt2")


@pytest.mark.parametrize("place", ["sample_inputs/model.pt", "constants/opaque_obj_0"])
def test_a_pickle_inside_a_torch_export_file_is_never_run(folder: Path, images, place: str) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (folder / "harmed",))

    bomb = io.BytesIO()
    torch.save(Bomb(), bomb)
    torch.export.save(torch.export.export(load_classifier("acme_models:make"), (images[0],)), "good.pt2")
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in good.namelist():
            if not name.endswith(place):
                evil.writestr(name, good.read(name))
        evil.writestr(f"good/data/{place}", bomb.getvalue())
    assert load_classifier("good.pt2")
    with pytest.raises(ClassifierError, match="evil.pt2 cannot be read by torch.export.load"):
        load_classifier("evil.pt2")
    assert not (folder / "harmed").exists()


def test_files_without_weights_are_errors(folder: Path) -> None:
    for name, content in (("empty.pt", b""), ("text.pt", b"hello"), ("folder.pt", None)):
        Path(name).mkdir() if content is None else Path(name).write_bytes(content)
        with pytest.raises(PurifierError, match=name):
            load_classifier("acme_models:make", weights=name)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet18", SpecError, "expected file.onnx, file.pt2, package.module:factory, .* or demo"),
        ("absent.onnx", ClassifierError, "absent.onnx"),
        ("absent.pt2", ClassifierError, "no file absent.pt2"),
        ("acme_models:gone", ClassifierError, "has no attribute 'gone'"),
        ("acme_nowhere:make", ClassifierError, "No module named 'acme_nowhere'"),
        ("acme_models:broken", ClassifierError, "ValueError: no such width"),
        ("acme_models:three", ClassifierError, "expected a torch.nn.Module, got int"),
        ("acme_models:number", ClassifierError, "not callable"),
    ],
)
def test_specs_without_a_classifier_are_errors(folder: Path, spec: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_classifier(spec)


def test_weights_that_do_not_fit_are_errors(folder: Path) -> None:
    save_file({"head.weight": torch.zeros(10, 3)}, "w.safetensors")
    with pytest.raises(ClassifierError, match="w.safetensors does not fit Net"):
        load_classifier("acme_models:make", weights="w.safetensors")
    with pytest.raises(SpecError, match="weights= \\(--weights\\) needs package.module:factory"):
        load_classifier("net.onnx", weights="w.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        load_classifier("acme_models:make", weights="absent.pt")


class Doubling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).flatten(1)


def test_a_torch_classifier_is_differentiable_unless_it_takes_bytes() -> None:
    pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
    way = Preprocessing(mean=(0.5,), std=(0.5,), layout="NHWC")
    classifier = pixel_classifier(Doubling(), way)
    (gradient,) = torch.autograd.grad(classifier(pixels).sum(), pixels)
    torch.testing.assert_close(gradient, torch.full_like(pixels, 2.0))
    assert classifier.differentiable and classifier.describe() == "torch Doubling"
    assert not pixel_classifier(Doubling(), Preprocessing(scale=255, dtype="uint8")).differentiable


@pytest.mark.parametrize("batch", ["N", 3])
def test_an_onnx_classifier_gives_logits_at_any_batch_size(folder: Path, images, batch: int | str) -> None:
    module = load_classifier("acme_models:make")
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}} if batch == "N" else None
    program = torch.onnx.export(module, (images[0][:3],), dynamo=True, verbose=False, dynamic_shapes=shapes)
    model = program.model_proto
    assert isinstance(model, ModelProto)
    classifier = pixel_classifier(model, Preprocessing())
    assert classifier.differentiable
    for size in (1, 3, 7):
        torch.testing.assert_close(classifier(images[0][:size]), module(images[0][:size]), atol=1e-4, rtol=1e-4)


def test_the_demo_classifier_is_the_shipped_one(images) -> None:
    module = load_classifier("demo")
    assert isinstance(module, nn.Module) and not module.training
    assert (module(images[0]).argmax(1) == images[1]).float().mean() > 0.8
