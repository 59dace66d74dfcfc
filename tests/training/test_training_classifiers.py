"""Classifiers that misbehave when a purifier is trained for them, each named in an error before any work."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.errors import ClassifierError, ConfigError, ExportError, OutputError, PurifierError, TrainingError
from purifier.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES = "denoise:attacks=square:queries=5,eps=0.1"


class Around(nn.Module):
    """The small net with something wrong about it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Exits(Around):
    def forward(self, images: Tensor) -> Tensor:
        raise SystemExit(0)


class Rows(Around):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 196)


class OneRow(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).mean(0, keepdim=True)


class Shifts(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.data.sub_(0.1))


class Forty(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.view(40, 1, 28, 28))


class Coloured(Around):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.mix(images))


class Masks(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) - torch.tensor([0.0] * 9 + [torch.inf])


class Unsmooth(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) + (images - images.detach()).flatten(1).square().sum(1, keepdim=True).sqrt()


class Gamma(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images ** (1 / 2.2))


class Later(Around):
    """Fails once it has been trained for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        if self.asked > 20:
            raise KeyError("late")
        return self.net(images)


def attempt(out: Path, classifier: object, **options: object) -> None:
    given = {"config": {"channels": 2, "latent": 4}, "recipe": "robust", "epochs": 1, **options}
    train("vae", "demo:40", out, classifier=classifier, **given)


@pytest.mark.parametrize(
    ("module", "options", "error", "says"),
    [
        (Exits, {}, ClassifierError, r"torch Exits failed \(it exited the program with code 0, at .*\)"),
        (Rows, {}, ClassifierError, "one row of logits per image, got 160 rows for 40 images"),
        (Rows, {"recipe": QUERIES}, ClassifierError, "one row of logits per image, got 160 rows for 40 images"),
        (OneRow, {}, ClassifierError, "one row of logits per image, got 1 rows for 40 images"),
        (Shifts, {}, TrainingError, "changes its input in place; make it work on a copy"),
        (Shifts, {"recipe": QUERIES}, TrainingError, "changes its input in place; make it work on a copy"),
        (Forty, {}, TrainingError, r"fails on images .* \(RuntimeError"),
        (
            Coloured,
            {},
            TrainingError,
            "takes images with 3 channels, and these have 1; give others, or a classifier",
        ),
        (Masks, {}, TrainingError, "returns NaN or infinity for an image of"),
        (
            Unsmooth,
            {},
            TrainingError,
            "has gradients that are NaN or infinite; fix it: look for a root or logarithm of 0",
        ),
        (
            Later,
            {"recipe": "denoise:attacks=fgsm+pgd"},
            TrainingError,
            r"'late', at .*\); fix the classifier, or choose another",
        ),
        (
            Later,
            {},
            TrainingError,
            r"failed in epoch 1 \(KeyError: 'late', at .*\); fix it; nothing has been saved yet",
        ),
        (Around, {"recipe": "robust:kl=1e40"}, TrainingError, r"step 1 \(.*kl inf\), before anything was learned"),
        (Around, {"input": 1}, ConfigError, "input: the classifier takes images, got position 1"),
        (Around, {"input": "x"}, ConfigError, "input: the classifier takes images, got 'x'"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), {}, ConfigError, "Sequential has no weights yet"),
        (lambda: nn.Linear(3, 2, device="meta"), {}, ConfigError, "Linear has no weights yet"),
        (lambda: purifier.guard(Around(), "identity"), {}, ConfigError, "already guarded; give its .classifier"),
    ],
)
def test_errors(module: type[nn.Module], options: dict[str, object], error: type[PurifierError], says: str, tmp_path):
    with pytest.raises(error, match=says):
        attempt(tmp_path / "p.safetensors", module(), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_that_exits_is_neither_exported_nor_audited(tmp_path: Path) -> None:
    guarded = purifier.guard(Exits(), "demo")
    with pytest.raises(ExportError, match=r"exited the program with code 0"):
        purifier.export(guarded, tmp_path / "x.onnx")
    with pytest.raises(PurifierError, match=r"exited the program with code 0"):
        purifier.audit(guarded, "demo:20", attacks=["fgsm"])
    assert list(tmp_path.iterdir()) == []


class Scaled(Around):
    """The image is its second argument."""

    def forward(self, scale: float | None = None, images: Tensor | None = None) -> Tensor:
        assert scale is None and images is not None
        return self.net(images)


@pytest.mark.parametrize("input", [1, "images"])
def test_the_image_goes_where_it_belongs(input: int | str, tmp_path: Path) -> None:
    attempt(tmp_path / "p.safetensors", Scaled(), input=input)
    made = purifier.load(tmp_path / "p.safetensors").provenance
    assert made["classifier"]["input"] == "images"


def test_an_onnx_model_that_mixes_up_its_rows_is_an_error(tmp_path: Path) -> None:
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])
    gives = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["m", 196])
    shape = onnx.numpy_helper.from_array(torch.tensor([-1, 196]).numpy(), "shape")
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = onnx.helper.make_graph([node], "rows", [given], [gives], [shape])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(ClassifierError, match="one row of logits per image, got 160 rows for 40 images"):
        attempt(tmp_path / "p.safetensors", model, recipe=QUERIES)
    with pytest.raises(ClassifierError, match="one row of logits per image, got 160 rows for 40 images"):
        attempt(tmp_path / "p.safetensors", model)


class Packed(Around):
    """Its state is more than tensors, as that of quantised layers."""

    def get_extra_state(self) -> torch.dtype:
        return torch.qint8

    def set_extra_state(self, state: torch.dtype) -> None:
        assert state == torch.qint8


def test_a_state_may_hold_more_than_tensors(tmp_path: Path) -> None:
    attempt(tmp_path / "p.safetensors", Packed())
    assert purifier.load(tmp_path / "p.safetensors").provenance["recipe"] == "robust"


def test_a_steep_root_at_black_is_accepted(tmp_path: Path) -> None:
    attempt(tmp_path / "p.safetensors", Gamma())
    assert purifier.load(tmp_path / "p.safetensors").provenance["recipe"] == "robust"


def test_the_classifiers_weights_are_not_overwritten(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((Path(__file__).parents[1] / "nets.safetensors").read_bytes())
    with pytest.raises(OutputError, match="this run reads its weights from that file; give another name"):
        attempt(weights, "nets:trained", weights=weights)
    recipe = f"denoise:attacks=fgsm+transfer:surrogate=nets:trained;weights={weights},eps=0.1"
    with pytest.raises(OutputError, match="this run reads its weights from that file; give another name"):
        attempt(weights, Around(), recipe=recipe)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"plugin": None}, "plugin: expected the name of a plugin, got None"),
        ({"out": 5}, "out: expected a file name, got 5"),
        ({"recipe": None}, "recipe: expected a recipe, such as"),
        ({"config": "channels=2"}, "config: expected options by name, got 'channels=2'"),
        ({"config": {1: 2}}, "config: expected options by name, got 1"),
        ({"weights": 5}, "weights: expected a file name, got 5"),
        ({"root": 5}, "root: expected a folder, got 5"),
        ({"progress": 5}, "progress: expected a function that takes a Progress, got 5"),
        ({"out": "a\0b.safetensors"}, r"cannot write .*: expected a name in UTF-8 without null characters"),
        ({"out": "a\udcffb.safetensors"}, r"cannot write .*: expected a name in UTF-8 without null characters"),
    ],
)
def test_arguments_of_the_wrong_type_are_errors(options: dict[str, object], says: str, tmp_path: Path) -> None:
    given = {"plugin": "vae", "data": "demo:40", "out": tmp_path / "p.safetensors", **options}
    with pytest.raises(PurifierError, match=says):
        train(**given)
