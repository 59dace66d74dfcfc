"""Classifiers of torchvision, timm and Hugging Face by name; models from state dicts made here are the oracle."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

import purifier
from purifier import Preprocessing
from purifier.classifiers.loading import load_classifier, read_classifier
from purifier.data.preprocessing import read_preprocessing
from purifier.errors import ClassifierError, PurifierError, SpecError

SMALL = "shufflenet_v2_x0_5"
"""A model of torchvision with 1.4 million weights."""
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def same(model: Any, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == key and torch.equal(value, known) for (name, value), (key, known) in pairs)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network: torch's downloads fail, and its cache is an empty folder."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_with_weights_from_a_file(tmp_path: Path) -> None:
    trained = torchvision.models.get_model(SMALL)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in trained.state_dict().items()}}, tmp_path / "w.pt"
    )
    model, wanted = read_classifier(f"torchvision:{SMALL}", weights=tmp_path / "w.pt")
    assert same(model, trained) and not model.training
    described = torchvision.models.get_model_weights(SMALL).DEFAULT
    assert wanted == read_preprocessing(described) and wanted.crop == 224
    given = Preprocessing(scale=255)
    assert read_classifier(f"torchvision:{SMALL}", weights=tmp_path / "w.pt", preprocessing=given)[1] is given


def test_fine_tuned_weights_set_the_number_of_classes(tmp_path: Path) -> None:
    trained = torchvision.models.get_model(SMALL, num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    model = load_classifier(f"torchvision:{SMALL}", weights=tmp_path / "w.pt")
    assert same(model, trained)
    assert model(IMAGES).shape == (2, 7)
    torch.save({**trained.state_dict(), "conv1.0.weight": torch.zeros(24, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(ClassifierError, match=r"of another shape: conv1.0.weight \(24x1x3x3, not 24x3x3x3\)"):
        load_classifier(f"torchvision:{SMALL}", weights=tmp_path / "w.pt")


def test_weights_are_never_random_unless_asked_for(offline: Path) -> None:
    with pytest.raises(ClassifierError) as raised:
        load_classifier(f"torchvision:{SMALL}")
    for part in (
        "its weights ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 cannot be loaded (URLError: <urlopen error no network>)",
        "download https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth into",
        f"{offline.parent}/checkpoints, or give a file with weights= (--weights), or random_weights=True",
    ):
        assert part in str(raised.value)
    first, second = (load_classifier(f"torchvision:{SMALL}", random_weights=True) for _ in range(2))
    assert isinstance(second, nn.Module) and same(first, second)


def test_random_weights_leave_the_callers_generator_alone() -> None:
    before = torch.random.get_rng_state()
    load_classifier(f"torchvision:{SMALL}", random_weights=True)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("version", ["", "@IMAGENET1K_V1", "@DEFAULT", "@ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"])
def test_torchvisions_own_weights_are_read_from_its_cache(version: str, offline: Path) -> None:
    offline.mkdir(parents=True)
    trained = torchvision.models.get_model(SMALL)
    torch.save(trained.state_dict(), offline / "shufflenetv2_x0.5-f707e7126e.pth")
    assert same(load_classifier(f"torchvision:{SMALL}{version}"), trained)


def test_a_pickle_in_the_cache_is_never_run(offline: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    offline.mkdir(parents=True)
    torch.save({"fc.bias": Bomb()}, offline / "shufflenetv2_x0.5-f707e7126e.pth")
    with pytest.raises(ClassifierError, match="cannot be loaded"):
        load_classifier(f"torchvision:{SMALL}")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("torchvision:", {}, "expected torchvision:NAME, timm:NAME, hf:FOLDER"),
        ("torchvision:resnet19", {}, r"no model 'resnet19'; torchvision.models.list_models\(\) lists them"),
        ("torchvision:resnet18@V2", {}, "expected one of the weights IMAGENET1K_V1 after @, got 'V2'"),
        ("torchvision:resnet50@", {}, "expected one of the weights IMAGENET1K_V1, IMAGENET1K_V2 after @, got ''"),
        ("torchvision:resnet18@DEFAULT", {"random_weights": True}, "expected no weights after @"),
        ("torchvision:fcn_resnet50", {"random_weights": True}, "expected a classifier of images"),
        ("torchvision:inception_v3", {"weights": "w.pt"}, "expected weights by name after @.*transform_input"),
        ("torchvision:resnet18", {"weights": "w.pt", "random_weights": True}, "got both; leave one out"),
        ("torchvision:resnet18", {"weights": "absent.pt"}, "no file absent.pt"),
        (
            "demo",
            {"random_weights": True},
            r"\(--random-weights\) needs torchvision:NAME, timm:NAME, hf:FOLDER, got 'demo'",
        ),
        (
            "torch.nn:Identity",
            {"random_weights": True},
            r"random_weights=True \(--random-weights\) needs torchvision:NAME",
        ),
    ],
)
def test_what_torchvision_has_not_is_an_error(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PurifierError, match=message):
        load_classifier(spec, **options)


@pytest.mark.parametrize(("spec", "package", "extra"), [("timm:x", "timm", "timm"), ("hf:x", "transformers", "hf")])
def test_a_missing_package_is_named_with_its_extra(
    spec: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ClassifierError, match=rf"package {package}, .*pip install 'adversarial-purifier\[{extra}\]'"):
        load_classifier(spec)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"][extra][0].startswith(package)


def test_a_guard_takes_the_librarys_preprocessing(offline: Path) -> None:
    offline.mkdir(parents=True)
    trained = torchvision.models.get_model(SMALL).eval()
    torch.save(trained.state_dict(), offline / "shufflenetv2_x0.5-f707e7126e.pth")
    guarded = purifier.guard(f"torchvision:{SMALL}", "identity")
    assert isinstance(guarded, nn.Module)
    images = read_preprocessing("imagenet").to_classifier(IMAGES)
    torch.testing.assert_close(guarded(images), trained(images), atol=1e-4, rtol=1e-4)
    given = purifier.guard(f"torchvision:{SMALL}", "identity", preprocessing=Preprocessing())
    torch.testing.assert_close(given(IMAGES), trained(IMAGES), atol=1e-4, rtol=1e-4)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    trained = timm.create_model("test_resnet", num_classes=5)
    torch.save({"state_dict": trained.state_dict(), "epoch": 1}, tmp_path / "w.pth.tar")
    model, wanted = read_classifier("timm:test_resnet", weights=tmp_path / "w.pth.tar")
    assert same(model, trained) and not model.training
    assert wanted == read_preprocessing(timm.data.resolve_data_config({}, model=model))
    assert wanted.crop == (160, 160) and wanted.mean
    first, second = (load_classifier("timm:test_vit.r160_in1k", random_weights=True) for _ in range(2))
    assert isinstance(second, nn.Module) and same(first, second)


def test_timms_own_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    trained = timm.create_model("test_resnet", num_classes=5, pretrained_cfg_overlay={"mean": [0.1, 0.2, 0.3]})
    timm.models.save_for_hf(trained, tmp_path)
    model, wanted = read_classifier(f"timm:local-dir:{tmp_path}")
    assert same(model, trained)
    assert wanted.mean == (0.1, 0.2, 0.3) and wanted.crop == (160, 160)


def test_timm_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["timm.models._builder"], "load_state_dict_from_hf", refuse)
    with pytest.raises(
        ClassifierError, match=r"its weights cannot be loaded \(OSError: no network\); fetch .*--weights"
    ):
        load_classifier("timm:test_resnet")
    unweighted = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(ClassifierError, match=f"timm has no weights for '{unweighted}'; give a file with weights="):
        load_classifier(f"timm:{unweighted}")
    with pytest.raises(ClassifierError, match="timm has no model 'resnet19'"):
        load_classifier("timm:resnet19", random_weights=True)
    with pytest.raises(ClassifierError, match="Invalid pretrained tag"):
        load_classifier("timm:test_resnet.bogus")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT with its image processor, as ``save_pretrained`` writes them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_hugging_face(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained = transformers.ViTForImageClassification.from_pretrained(folder)
    model, wanted = read_classifier(f"hf:{folder}")
    assert same(model, trained) and not model.training
    assert wanted == Preprocessing((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), resize=(16, 16))
    other = load_classifier(f"hf:{folder}", random_weights=True)
    assert isinstance(other, nn.Module) and not same(other, trained)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pt")
    assert same(load_classifier(f"hf:{folder}", weights=tmp_path / "w.pt"), other)


def test_a_guarded_hugging_face_classifier_answers_as_without(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    guarded = purifier.guard(f"hf:{folder}", "identity")
    images = read_preprocessing(transformers.ViTImageProcessor.from_pretrained(folder)).to_classifier(
        IMAGES[..., :16, :16]
    )
    expected = transformers.ViTForImageClassification.from_pretrained(folder).eval()(images).logits
    assert isinstance(guarded, nn.Module)
    torch.testing.assert_close(guarded(images).logits, expected, atol=1e-5, rtol=1e-5)


def test_halved_weights_of_hugging_face_are_read_as_float32(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTForImageClassification.from_pretrained(folder).half().save_pretrained(folder)
    for random in (False, True):
        model = load_classifier(f"hf:{folder}", random_weights=random)
        assert isinstance(model, nn.Module) and {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_folder_that_is_no_classifier_is_an_error(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ClassifierError, match=r"expected a folder with config.json.*got 'google/vit'; .*hf download"):
        load_classifier("hf:google/vit")
    transformers.ViTModel.from_pretrained(folder).save_pretrained(tmp_path / "headless")
    with pytest.raises(ClassifierError, match=r"weights lack classifier.bias, classifier.weight \(2 in all\)"):
        load_classifier(f"hf:{tmp_path / 'headless'}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ClassifierError, match=r"the folder's weights cannot be loaded \(OSError: .*--weights"):
        load_classifier(f"hf:{folder}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ClassifierError, match="image processor cannot be read .*--preprocessing"):
        read_classifier(f"hf:{folder}", random_weights=True)
    given = Preprocessing()
    assert read_classifier(f"hf:{folder}", random_weights=True, preprocessing=given)[1] is given


def test_code_in_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'harmed')!r}).touch()\nclass Evil: ...\n"
    )
    with pytest.raises(ClassifierError, match="evil|custom code"):
        load_classifier(f"hf:{folder}")

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "auto_map": {}}))
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ClassifierError, match="cannot be loaded"):
        load_classifier(f"hf:{folder}")
    assert not (tmp_path / "harmed").exists()


def test_reserved_prefixes_come_before_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hf", None)
    with pytest.raises(ClassifierError, match="config.json|transformers"):
        load_classifier("hf:net.onnx")
    with pytest.raises(SpecError, match="expected file.onnx, .*timm:NAME"):
        load_classifier("timm")
