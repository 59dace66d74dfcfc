"""guard() on torch classifiers: a drop-in under the classifier's own signature."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

import purifier
from purifier import Preprocessing
from purifier.errors import PixelError

VAE = "vae:image_shape=1x28x28,channels=4,latent=8"


class Net(nn.Module):
    """A classifier with batch normalisation and dropout, and every kind of argument."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(676, 10)

    def forward(self, images: Tensor, temperature: float = 1.0, *, shift: Tensor | None = None):
        logits = self.head(self.drop(self.body(images))) / temperature
        logits = logits if shift is None else logits + shift
        return {
            "tensor": logits,
            "tuple": (logits, logits.argmax(1)),
            "dict": OrderedDict(logits=logits),
            "dataclass": Output(logits),
        }[self.kind]


@dataclass
class Output:
    logits: Tensor


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_the_guard_is_the_purifier_then_the_classifier(net: Net, images) -> None:
    pixels, _ = images
    guarded = purifier.guard(net, VAE)
    with torch.no_grad():
        expected = net(guarded.purifier.purify(pixels))
        assert torch.equal(guarded(pixels), expected)
        assert not torch.allclose(expected, net(pixels))
    assert torch.equal(purifier.guard(net, "identity")(pixels), net(pixels))


@pytest.mark.parametrize("preprocessing", [Preprocessing(), Preprocessing(mean=(0.286,), std=(0.353,))], ids=str)
def test_black_and_white_pixels_keep_their_gradient(preprocessing: Preprocessing, net: Net, images) -> None:
    """An attacker sees the gradient of pixels at the bounds, and of those that rounding puts beyond."""
    guarded = purifier.guard(net, "identity", preprocessing=preprocessing).eval()
    image = preprocessing.to_classifier(images[0].round()).requires_grad_()
    found, expected = (torch.autograd.grad(one(image).logsumexp(1).sum(), image)[0] for one in (guarded, net))
    assert expected.count_nonzero() > expected.numel() / 2
    torch.testing.assert_close(found, expected)


def test_arguments_pass_through_and_the_image_may_be_named(net: Net, images) -> None:
    pixels, shift = images[0], torch.arange(10.0)
    guarded = purifier.guard(net, "identity")
    expected = net(pixels, 2.0, shift=shift)
    assert torch.equal(guarded(pixels, 2.0, shift=shift), expected)
    assert torch.equal(guarded(images=pixels, temperature=2.0, shift=shift), expected)
    assert inspect.signature(guarded) == inspect.signature(net.forward)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "dataclass"])
def test_return_values_keep_their_type(kind: str, images) -> None:
    torch.manual_seed(0)
    net = Net(kind).eval()
    guarded, expected = purifier.guard(net, "identity")(images[0]), net(images[0])
    assert type(guarded) is type(expected)
    logits = {"tensor": lambda o: o, "tuple": lambda o: o[0], "dict": lambda o: o["logits"]}.get(
        kind, lambda o: o.logits
    )
    assert torch.equal(logits(guarded), logits(expected))


class Second(nn.Module):
    """The image is not the first argument."""

    def forward(self, mask: Tensor, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :10] * mask


@pytest.mark.parametrize("place", [1, "image"])
def test_the_image_may_be_any_argument(place: int | str, images) -> None:
    pixels, mask = images[0], torch.ones(10)
    guarded = purifier.guard(Second(), "bit-depth:bits=1", input=place)
    expected = pixels.flatten(1)[:, :10].round()
    assert torch.equal(guarded(mask, pixels), expected)
    assert torch.equal(guarded(mask, image=pixels), expected)
    assert torch.equal(guarded(mask=mask, image=pixels), expected)
    with pytest.raises(PixelError, match="image: expected an image tensor, got nothing"):
        guarded(mask)


def test_the_classifier_stays_as_it_is_bit_for_bit(net: Net, images) -> None:
    before = copy.deepcopy(net.state_dict())
    needs = [p.requires_grad for p in net.parameters()]
    guarded = purifier.guard(net, VAE)
    guarded(images[0]).sum().backward()
    guarded.eval()
    assert guarded.classifier is net
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert [p.requires_grad for p in net.parameters()] == needs


def test_train_and_eval_reach_the_classifier_and_not_the_purifier(net: Net) -> None:
    guarded = purifier.guard(net.train(), VAE)
    assert guarded.training and net.training and not guarded.purifier.training
    guarded.eval()
    assert not guarded.training and not net.drop.training
    guarded.train()
    assert net.drop.training and not guarded.purifier.encoder.training


def test_state_dict_deepcopy_pickle_and_torch_save(net: Net, images) -> None:
    guarded, pixels = purifier.guard(net, VAE), images[0]
    expected = guarded(pixels)
    fresh = purifier.guard(Net().eval(), VAE)
    fresh.load_state_dict(guarded.state_dict())
    saved = io.BytesIO()
    torch.save(guarded, saved)
    saved.seek(0)
    for twin in (
        fresh,
        copy.deepcopy(guarded),
        pickle.loads(pickle.dumps(guarded)),  # noqa: S301 - its own pickle
        torch.load(saved, weights_only=False),
    ):
        assert torch.equal(twin(pixels), expected)
    assert {key.partition(".")[0] for key in guarded.state_dict()} == {"classifier", "purifier"}


def test_a_filter_without_weights_follows_a_half_classifier(net: Net, images) -> None:
    guarded = purifier.guard(net, "blur").to(torch.bfloat16)
    assert guarded(images[0].bfloat16()).dtype == torch.bfloat16


def test_to_moves_both_halves(net: Net, images) -> None:
    guarded = purifier.guard(net, VAE)
    expected = guarded(images[0])
    assert guarded.to(torch.float64)(images[0].double()).dtype == torch.float64
    halves = guarded.to(torch.bfloat16)(images[0].bfloat16())
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), expected, atol=0.1, rtol=0.1)
    assert guarded.to("meta").purifier.encoder.layers[0].weight.is_meta


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_with_a_dynamic_batch(net: Net, images, strict: bool) -> None:
    guarded, pixels = purifier.guard(net, VAE), images[0]
    exported = torch.export.export(
        guarded, (pixels[:3],), dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}}, strict=strict
    ).module()
    for size in (1, 2, 7):
        torch.testing.assert_close(exported(pixels[:size]), guarded(pixels[:size]))


def test_a_torch_export_file_is_a_classifier_like_any_other(net: Net, images, tmp_path: Path) -> None:
    pixels = images[0]
    batch = {"images": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(net, (pixels,), dynamic_shapes=batch), tmp_path / "net.pt2")
    guarded = purifier.guard(tmp_path / "net.pt2", VAE).eval()
    torch.testing.assert_close(guarded(pixels), purifier.guard(net, guarded.purifier)(pixels))
    assert purifier.export(guarded, tmp_path / "net.onnx").max_error.keys() == {1, 2, 7}
    report = purifier.audit(guarded, "fashion-mnist:test:5", attacks=["fgsm"])
    assert {row.route for row in report.rows if row.model == "guarded"} == {None, "exact", "bpda", "oblivious"}


def test_data_parallel_outside_and_inside(net: Net, images) -> None:
    guarded = purifier.guard(net, VAE)
    assert torch.equal(nn.DataParallel(guarded)(images[0]), guarded(images[0]))
    inside = purifier.guard(nn.DataParallel(net), guarded.purifier)
    assert torch.equal(inside(images[0]), guarded(images[0]))
    assert purifier.audit(inside, "demo:5", attacks=["fgsm"]).complete


def test_torch_compile_keeps_noise_and_check(net: Net, images) -> None:
    guarded = purifier.guard(net, f"{VAE},sample=true", seed=1)
    compiled = torch.compile(guarded, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images[0]), guarded(images[0]))
        with pytest.raises(PixelError, match="nan"):
            compiled(images[0] * float("nan"))


def test_distributed_data_parallel_wrapping(net: Net, images, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        guarded = purifier.guard(net, VAE)
        wrapped = nn.parallel.DistributedDataParallel(guarded)
        assert torch.equal(wrapped(images[0]), guarded(images[0]))
    finally:
        torch.distributed.destroy_process_group()


def test_score_comes_beside_the_output(net: Net, images) -> None:
    guarded = purifier.guard(net, VAE, score=True)
    output, score = guarded(images[0])
    assert torch.equal(output, purifier.guard(net, guarded.purifier)(images[0]))
    assert torch.equal(score, guarded.purifier.score(images[0])) and score.shape == (64,)


def test_preprocessing_of_torchvision_weights() -> None:
    torch.manual_seed(0)
    net, weights = resnet18(num_classes=5).eval(), ResNet18_Weights.DEFAULT
    images = weights.transforms()(torch.rand(2, 3, 250, 260))
    with torch.no_grad():
        guarded = purifier.guard(net, "identity", preprocessing=weights.transforms())
        torch.testing.assert_close(guarded(images), net(images), atol=1e-4, rtol=1e-4)
        with pytest.raises(PixelError, match=r"expected values in \[0, 1\], got .*preprocessing="):
            purifier.guard(net, "identity")(images)


class Bytes(nn.Module):
    """Takes uint8 NHWC."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((1, 2))


def test_uint8_channels_last_classifier() -> None:
    images = torch.randint(0, 256, (4, 8, 9, 3), dtype=torch.uint8)
    way = Preprocessing(scale=255, layout="NHWC", dtype="uint8")
    assert torch.equal(purifier.guard(Bytes(), "identity", preprocessing=way)(images), Bytes()(images))
    with pytest.raises(PixelError, match="expected uint8 images, got torch.float32; .*dtype='float32'"):
        purifier.guard(Bytes(), "identity", preprocessing=way)(images / 255)


def test_a_random_purifier_follows_its_seed_or_torch(net: Net, images) -> None:
    pixels, sampling = images[0], f"{VAE},sample=true"
    seeded = purifier.guard(net, sampling, seed=1)
    torch.testing.assert_close(seeded(pixels)[5:6], seeded(pixels[5:6]))
    free = purifier.guard(net, seeded.purifier)
    assert not torch.equal(free(pixels), free(pixels))
    torch.manual_seed(3)
    first = free(pixels)
    torch.manual_seed(3)
    assert torch.equal(free(pixels), first)
