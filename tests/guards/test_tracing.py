"""Guards where values cannot be read: transforms of functions, meta and fake tensors, compilers and tracers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

import purifier
from purifier import Preprocessing
from purifier.errors import ConfigError, PixelError
from purifier.guards.module import GuardedModule
from purifier.seeding import SampleGenerator
from scoring_purifiers import BrightConfig, calibrated, dark_and_bright

VAE = "vae:image_shape=1x28x28,channels=4,latent=8"
PIXELS = dark_and_bright()


class Mean(purifier.Purifier):
    """The brightest images are rejected; has classes of its own, and draws noise if asked to."""

    Config, gradient = BrightConfig, "exact"
    noisy = False

    def __init__(self) -> None:
        super().__init__(BrightConfig())
        self.factor = nn.Parameter(torch.tensor(0.6))

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        return generator.uniform(pixels.shape[1:], pixels) if self.noisy else None

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * self.factor + (0 if noise is None else 0.1 * noise)

    def score(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).mean(1)

    def classify(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0, 0, :10].log_softmax(1)


class Net(nn.Module):
    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fc, self.form = nn.Conv2d(1, 4, 3), nn.Linear(4, 10), form

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(self.layer(x).tanh().mean((2, 3)))
        return {"tensor": logits, "dict": {"logits": logits}, "tuple": (logits, x)}[self.form]


def make(model: nn.Module, on_reject: str = "ignore", **options: Any) -> GuardedModule:
    return purifier.guard(model.eval(), calibrated(Mean()), on_reject=on_reject, **options)


GUARDS: dict[str, Callable[[], GuardedModule]] = {
    "vae": lambda: purifier.guard(Net().eval(), VAE),
    "blur": lambda: purifier.guard(Net().eval(), "blur", preprocessing=Preprocessing(mean=(0.5,), std=(0.25,))),
    "bit-depth": lambda: purifier.guard(Net().eval(), "bit-depth"),
    "identity": lambda: purifier.guard(Net().eval(), "identity", preprocessing=Preprocessing(scale=255)),
    "flag": lambda: make(Net(), "flag", score=True),
    "abstain": lambda: make(Net(), "abstain"),
    "abstain=3": lambda: make(Net("dict"), "abstain", abstain=3),
    "reclassify": lambda: make(Net("tuple"), "reclassify"),
}
every_guard = pytest.mark.parametrize("name", GUARDS)
one_guard_by_default = pytest.mark.parametrize(
    "name", [name if name == "abstain=3" else pytest.param(name, marks=pytest.mark.integration) for name in GUARDS]
)
"""For what takes seconds per guard."""
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # and still in production


def made(name: str) -> tuple[GuardedModule, Tensor, Any]:
    """A guard, images for it, and its answers."""
    guarded = GUARDS[name]().eval()
    images = guarded.preprocessing.to_classifier(PIXELS)
    with torch.no_grad():
        return guarded, images, guarded(images)


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-4)


@every_guard
def test_vmap(name: str) -> None:
    guarded, images, expected = made(name)
    assert_same(torch.func.vmap(guarded)(images[:, None]), tree_map(lambda value: value[:, None], expected))


@one_guard_by_default
def test_meta_and_fake_tensors(name: str) -> None:
    guarded, images, expected = made(name)
    found = copy.deepcopy(guarded).to("meta")(images.to("meta"))
    assert [one.shape for one in tree_leaves(found)] == [one.shape for one in tree_leaves(expected)]
    assert all(one.is_meta for one in tree_leaves(found))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert all(isinstance(one, FakeTensor) for one in tree_leaves(guarded(images)))


@pytest.mark.parametrize("name", ["vae", "abstain=3"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(name: str, mode: str) -> None:
    guarded, images, expected = made(name)
    with torch.no_grad():
        assert_same(make_fx(guarded, tracing_mode=mode, _allow_non_fake_inputs=True)(images)(images), expected)


@every_guard
def test_per_image_gradients_with_functional_parameters(name: str) -> None:
    guarded, images, _ = made(name)
    weights = dict(guarded.named_parameters())

    def first(image: Tensor) -> Tensor:
        given = torch.func.functional_call(guarded, weights, (image[None],))
        return tree_leaves(given)[0].nan_to_num(0, 0, 0).square().sum()

    found = torch.func.vmap(torch.func.grad(first))(images[:2])
    leaf = images[:2].clone().requires_grad_()
    expected = torch.autograd.grad(sum(first(image) for image in leaf), leaf)[0]
    torch.testing.assert_close(found, expected)


@every_guard
@deprecated
def test_a_trace_gives_no_warning_and_takes_any_batch(name: str) -> None:
    guarded, images, expected = made(name)
    traced = torch.jit.trace(guarded, images, strict=False)
    assert_same(traced(images), expected)
    assert_same(traced(images[:2]), tree_map(lambda value: value[:2], expected))


@deprecated
def test_a_trace_holds_the_mean_of_a_random_purifier_and_cannot_raise() -> None:
    guarded = make(Net())
    guarded.purifier.noisy = True
    assert_same(
        torch.jit.trace(guarded, PIXELS, check_trace=False)(PIXELS), guarded.classifier(guarded.purifier.purify(PIXELS))
    )
    with pytest.raises(ConfigError, match="on_reject='raise' cannot be exported"):
        torch.jit.trace(make(Net(), "raise"), PIXELS)


@one_guard_by_default
def test_one_compiled_graph_that_checks_its_images(name: str) -> None:
    guarded, images, expected = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(guarded, backend="aot_eager", fullgraph=True)
    assert_same(compiled(images), expected)
    for wrong in (images * float("nan"), images * 500):
        with pytest.raises(PixelError, match="x: expected values"):
            compiled(wrong)
    unchecked = copy.deepcopy(guarded)
    unchecked.check = False
    torch.compile(unchecked, backend="aot_eager", fullgraph=True)(images * 500)


def test_a_compiled_graph_knows_pixels_from_bytes() -> None:
    guarded = GUARDS["identity"]()
    torch._dynamo.reset()
    with pytest.raises(PixelError, match="from 0 to 255, as declared .* these are pixels"):
        torch.compile(guarded, backend="aot_eager", fullgraph=True)(PIXELS)


def test_a_compiled_graph_has_the_gradient_of_the_guard() -> None:
    guarded, images, _ = made("vae")
    torch._dynamo.reset()
    found, expected = (
        torch.autograd.grad(one(leaf).logsumexp(1).sum(), leaf)[0]
        for one in (torch.compile(guarded, backend="aot_eager", fullgraph=True), guarded)
        for leaf in [images.clone().requires_grad_()]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.integration
@every_guard
def test_inductor(name: str) -> None:
    guarded, images, expected = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(guarded, fullgraph=True)
    with torch.no_grad():
        assert_same(compiled(images), expected)
        with pytest.raises(PixelError, match="x: expected values"):
            compiled(images * float("nan"))


@pytest.mark.gpu
def test_a_cuda_graph_can_be_captured() -> None:
    guarded, images, expected = made("blur")
    guarded, images = guarded.cuda(), images.cuda()
    with torch.no_grad():
        guarded(images)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = guarded(images)
    graph.replay()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)


@one_guard_by_default
@pytest.mark.parametrize("strict", [False, True])
def test_export_by_the_classifiers_own_argument_names(name: str, strict: bool) -> None:
    guarded, images, expected = made(name)
    batch = torch.export.Dim("B")
    exported = torch.export.export(guarded, (images,), dynamic_shapes={"x": {0: batch}}, strict=strict).module()
    assert_same(exported(images), expected)
    assert_same(exported(images[:2]), tree_map(lambda value: value[:2], expected))
    named = torch.export.export(guarded, (), {"x": images}, dynamic_shapes={"x": {0: batch}}, strict=strict).module()
    assert_same(named(x=images), expected)


@every_guard
def test_channels_last(name: str) -> None:
    guarded, images, expected = made(name)
    seen: list[Tensor] = []
    guarded.layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    guarded.to(memory_format=torch.channels_last)
    colour = images.expand(-1, 2, -1, -1).contiguous(memory_format=torch.channels_last)[:, :1]
    assert_same(guarded(colour), expected)
    assert seen[-1].shape == images.shape


def test_the_classifier_gets_the_memory_format_that_it_was_given() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x.is_contiguous(memory_format=torch.channels_last)
            return x.flatten(1)[:, :10]

    guarded = purifier.guard(Asking(), "blur")
    images = torch.rand(2, 3, 16, 16)
    for last in (True, False):
        guarded(images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format))
        assert guarded.classifier.last is last


@pytest.mark.parametrize("name", ["vae", "blur", "identity", "flag"])
def test_a_double_guard_is_float64_all_through(name: str) -> None:
    guarded, images, _ = made(name)
    guarded, images = copy.deepcopy(guarded).double(), images.double()[:2]
    inner: list[torch.dtype] = []
    guarded.layer.register_forward_pre_hook(lambda layer, given: inner.append(given[0].dtype))
    assert all(one.dtype in (torch.float64, torch.bool) for one in tree_leaves(guarded(images)))
    assert inner == [torch.float64]
    leaf = (0.98 * images + 0.01 * images.max()).requires_grad_()  # no pixel at a bound, beyond which it is flat
    assert torch.autograd.gradcheck(lambda image: tree_leaves(guarded(image))[0], leaf, fast_mode=True)


def test_float64_images_keep_their_last_digits() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    images = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    for way in (Preprocessing(), Preprocessing(mean=(0.5,), std=(0.3,)), Preprocessing(scale=255)):
        given = way.to_classifier(images, torch.float64)
        torch.testing.assert_close(
            purifier.guard(Sum(), "identity", preprocessing=way)(given), given.flatten(1)[:, :10], rtol=1e-14, atol=0
        )


def test_only_a_purifier_in_training_keeps_its_gradients() -> None:
    loaded = purifier.load("demo-plain")
    assert all(weight.requires_grad for weight in loaded.parameters())
    guarded = purifier.guard(Net(), loaded)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert all(weight.requires_grad for weight in guarded.classifier.parameters())
    guarded(PIXELS).sum().backward()
    assert guarded.fc.weight.grad is not None
    trained = purifier.guard(Net(), Mean().train()).purifier
    assert not trained.training and trained.factor.requires_grad


@deprecated
@pytest.mark.parametrize("freeze", [False, True])
def test_scripted_and_frozen_classifiers(freeze: bool) -> None:
    net = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval())
    net = torch.jit.freeze(net) if freeze else net
    guarded = purifier.guard(net, "bit-depth:bits=1")
    for twin in (guarded, guarded.eval(), copy.deepcopy(guarded)):
        assert_same(twin(PIXELS), net(PIXELS.round()))
    assert not guarded.training
    assert purifier.audit(purifier.guard(net, VAE), "demo:4", attacks=["fgsm"]).complete
    rejecting = make(net, "abstain")
    assert_same(rejecting(PIXELS).isnan().any(1), calibrated(Mean()).score(PIXELS) > 0.5)
