"""Guards inside other libraries: Hugging Face's pipeline and Trainer, timm, Lightning; models with random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import purifier
from purifier import Preprocessing
from purifier.errors import UnguardedError
from scoring_purifiers import Bright, BrightConfig, calibrated

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # lightning
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]
PIXELS = torch.rand((6, 1, 28, 28), generator=torch.Generator().manual_seed(0))
HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra frameworks")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes)
    return transformers.ViTForImageClassification(config).eval()


def dimming(model: nn.Module, **options: Any) -> purifier.GuardedModule:
    """A guard that makes images darker and rejects the bright ones."""
    bright = calibrated(Bright(BrightConfig((3, 32, 32))))
    return purifier.guard(model, bright, preprocessing=HALVES, **options)


def dimmed(images: Tensor) -> Tensor:
    return HALVES.to_classifier(0.6 * HALVES.to_pixels(images))


def labelled(count: int = 6) -> list[dict[str, Any]]:
    images = HALVES.to_classifier(torch.rand((count, 3, 32, 32), generator=torch.Generator().manual_seed(1)))
    return [{"pixel_values": image, "labels": place % 5} for place, image in enumerate(images)]


@pytest.mark.integration
def test_hugging_face_pipeline(vit: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    import transformers
    from PIL import Image

    photo = Image.fromarray((np.random.default_rng(0).random((40, 30, 3)) * 255).astype(np.uint8))
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    classify = transformers.pipeline("image-classification", model=dimming(vit), image_processor=processor)
    found = {one["label"]: one["score"] for one in classify(photo)}
    images = processor(photo, return_tensors="pt").pixel_values
    expected = vit(dimmed(images)).logits.softmax(1)[0]
    assert [found[f"LABEL_{place}"] for place in range(5)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert not [record for record in caplog.records if "not supported" in record.getMessage()]


@pytest.mark.integration
def test_hugging_face_trainer_predicts_and_trains_the_classifier_only(vit: nn.Module, tmp_path: Path) -> None:
    import transformers

    options = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "disable_tqdm": True}
    given = transformers.TrainingArguments(per_device_eval_batch_size=4, max_steps=2, save_strategy="no", **options)
    guarded, data = dimming(vit), labelled()
    found = transformers.Trainer(model=guarded, args=given).predict(data)
    images = torch.stack([one["pixel_values"] for one in data])
    np.testing.assert_allclose(found.predictions, vit(dimmed(images)).logits.detach().numpy(), atol=1e-5)
    assert found.label_ids.tolist() == [one["labels"] for one in data]
    before, factor = vit.classifier.weight.detach().clone(), guarded.purifier.factor.item()
    transformers.Trainer(model=guarded, args=given, train_dataset=data).train()
    assert not torch.equal(vit.classifier.weight, before)
    assert guarded.purifier.factor.item() == factor


@pytest.mark.integration
@pytest.mark.parametrize("on_reject", ["flag", "abstain"])
def test_hugging_face_outputs_stay_what_they_are(vit: nn.Module, on_reject: str) -> None:
    images = torch.cat([-torch.ones(2, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    given = dimming(vit, on_reject=on_reject)(pixel_values=images, output_hidden_states=True)
    expected = vit(dimmed(images), output_hidden_states=True)
    output, rejected = given if on_reject == "flag" else (given, given.logits.isnan().all(1))
    assert type(output) is type(expected) and list(output) == list(expected)
    assert output["logits"] is output.logits
    assert rejected.tolist() == [False, False, True]
    torch.testing.assert_close(output.logits[:2], expected.logits[:2])
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)


@pytest.mark.integration
def test_hugging_face_models_are_exported_and_compiled(vit: nn.Module) -> None:
    images, guarded = torch.stack([one["pixel_values"] for one in labelled()]), dimming(vit, on_reject="abstain")
    expected = guarded(images).logits
    shapes = {"pixel_values": {0: torch.export.Dim("B")}}
    exported = torch.export.export(guarded, (images,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(images[:2]).logits, expected[:2], equal_nan=True)
    compiled = torch.compile(guarded, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images).logits, expected, equal_nan=True)


@pytest.mark.integration
def test_hugging_face_attributes(vit: nn.Module, tmp_path: Path) -> None:
    guarded = dimming(vit)
    assert (guarded.config, guarded.num_labels) == (vit.config, 5)
    assert (guarded.device, guarded.dtype) == (vit.device, torch.float32)
    assert guarded.num_parameters() == vit.num_parameters()
    for name in ("vit", "base_model"):
        with pytest.raises(UnguardedError, match=f"'{name}' .* guarded.classifier"):
            getattr(guarded, name)(torch.ones(1, 3, 32, 32))
    guarded.classifier.save_pretrained(tmp_path)
    again = type(vit).from_pretrained(tmp_path)
    assert torch.equal(again.classifier.weight, vit.classifier.weight)


@pytest.mark.integration
def test_timm_config_and_methods() -> None:
    timm = pytest.importorskip("timm", reason="timm is in the extra frameworks")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=5).eval()
    guarded, images = dimming(model), labelled()[0]["pixel_values"][None]
    config = timm.data.resolve_data_config({}, model=guarded)
    assert config == timm.data.resolve_data_config({}, model=model)
    assert config["mean"] == model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    torch.testing.assert_close(guarded(images), model(dimmed(images)))
    for name in ("forward_features", "forward_head", "forward_intermediates", "get_intermediate_layers"):
        with pytest.raises(UnguardedError, match="guarded.classifier"):
            getattr(guarded, name)(images)
    guarded.reset_classifier(7)
    guarded.set_grad_checkpointing(True)
    assert guarded(images).shape == (1, 7) and model.grad_checkpointing


@pytest.mark.integration
def test_lightning_predicts_tests_and_fits() -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is in the extra frameworks")
    model = lightning_classifier(lightning.LightningModule)
    guarded = purifier.guard(model, "bit-depth:bits=1")
    data = DataLoader(TensorDataset(PIXELS, torch.arange(6)), batch_size=4)
    quiet = {"logger": False, "barebones": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **quiet)
    expected = model.fc(PIXELS.round().flatten(1)).detach()
    for twin in (guarded, copy.deepcopy(guarded)):
        torch.testing.assert_close(torch.cat(trainer.predict(twin, data)), expected)
    (figures,) = trainer.test(guarded, data, verbose=False)
    assert figures["accuracy"] == pytest.approx((expected.argmax(1) == torch.arange(6)).float().mean().item())
    before = model.fc.weight.detach().clone()
    trainer.fit(guarded, data)
    assert not torch.equal(before, model.fc.weight)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


def lightning_classifier(base: type[nn.Module]) -> Any:
    class Classifier(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(784, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

        def predict_step(self, batch: Any, index: int) -> Tensor:
            return self(batch[0])

        def raw_step(self, batch: Any, index: int) -> Tensor:
            return self.fc(batch[0].flatten(1))

        def test_step(self, batch: Any, index: int) -> None:
            self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD((one for one in self.parameters() if one.requires_grad), 0.1)

    return Classifier()


def test_a_lightning_module_stays_one_and_its_hooks_are_guarded() -> None:
    """With a stand-in for the library: its Trainer asks isinstance, and calls hooks as methods."""

    class LightningModule(nn.Module):
        _trainer = None

        @property
        def trainer(self) -> Any:
            return self._trainer

        @trainer.setter
        def trainer(self, trainer: Any) -> None:
            self._trainer = trainer

        def predict_step(self, batch: Any, index: int) -> Tensor:
            raise NotImplementedError

    LightningModule.__module__ = "lightning.pytorch.core.module"
    model = lightning_classifier(LightningModule)
    guarded = purifier.guard(model, "bit-depth:bits=1")
    assert isinstance(guarded, LightningModule) and isinstance(guarded, purifier.GuardedModule)
    guarded.trainer = "one"
    for twin in (guarded, copy.deepcopy(guarded)):
        assert isinstance(twin, LightningModule) and twin.trainer == "one"
        assert torch.equal(twin.predict_step([PIXELS], 0), model(PIXELS.round()))
        with pytest.raises(UnguardedError, match="'fc'"):
            twin.raw_step([PIXELS], 0)
    assert not isinstance(purifier.guard(Plain(), "identity"), LightningModule)
