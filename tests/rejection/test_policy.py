"""What a guarded torch module does with rejected images."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.errors import ConfigError, PluginError, PurifierError, RejectedError
from purifier.guards.guard import guard
from scoring_purifiers import Bright, BrightConfig, Classes, calibrated, dark_and_bright

REJECTED = torch.tensor([False, True, False, True, True, False])


class Net(nn.Module):
    """A linear classifier of 1x28x28 images with an answer of any form."""

    def __init__(self, classes: int = 10, form: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.form = nn.Linear(784, classes), form

    def forward(self, images: Tensor) -> Any:
        logits = self.head(images.flatten(1))
        return logits if self.form is None else self.form(logits)


@pytest.fixture
def bright() -> Bright:
    return calibrated(Bright())


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - written a moment before


def plain(bright: Bright, pixels: Tensor) -> Tensor:
    return Net()(bright.purify(pixels))


def test_flag_says_which_images_are_rejected_and_changes_nothing_else(bright: Bright) -> None:
    pixels = dark_and_bright()
    output, rejected = guard(Net(), bright, on_reject="flag")(pixels)
    assert torch.equal(rejected, REJECTED)
    assert torch.equal(output, plain(bright, pixels))
    output, score, rejected = guard(Net(), bright, on_reject="flag", score=True)(pixels)
    assert torch.equal(score, bright.score(pixels))
    assert torch.equal(rejected, REJECTED)
    answer, _ = guard(Net(form=lambda logits: {"any": logits}), bright, on_reject="flag")(pixels)
    assert torch.equal(answer["any"], output)


def test_ignore_is_the_default_and_needs_no_calibration() -> None:
    pixels, bright = dark_and_bright(), Bright()
    assert torch.equal(guard(Net(), bright)(pixels), plain(bright, pixels))
    assert bright.scored == 0
    output, score = guard(Net(), calibrated(bright), score=True)(pixels)
    assert torch.equal(output, plain(bright, pixels))
    assert torch.equal(score, bright.score(pixels))


def test_abstain_makes_the_rows_nan_or_certain_of_one_class(bright: Bright) -> None:
    pixels = dark_and_bright()
    output = guard(Net(), bright, on_reject="abstain")(pixels)
    assert torch.equal(output.isnan().all(1), REJECTED)
    assert torch.equal(output[~REJECTED], plain(bright, pixels)[~REJECTED])
    output, score = guard(Net(), bright, on_reject="abstain", abstain=9, score=True)(pixels)
    assert torch.equal(output[REJECTED].softmax(1), torch.eye(10)[[9, 9, 9]])
    assert torch.equal(output[~REJECTED], plain(bright, pixels)[~REJECTED])
    assert torch.equal(score, bright.score(pixels))


def test_raise_says_how_many_and_which(bright: Bright) -> None:
    pixels = dark_and_bright()
    guarded = guard(Net(), bright, on_reject="raise")
    assert torch.equal(guarded(pixels[~REJECTED]), plain(bright, pixels[~REJECTED]))
    with pytest.raises(RejectedError, match="3 of 6 images are rejected: they score above 0.5, or NaN;") as raised:
        guarded(pixels)
    assert torch.equal(raised.value.rejected, REJECTED)
    assert torch.equal(raised.value.score, bright.score(pixels))
    again = copied(raised.value)
    assert (str(again), again.rejected.tolist()) == (str(raised.value), REJECTED.tolist())


def test_reclassify_asks_the_purifiers_own_classifier() -> None:
    pixels, classes = dark_and_bright(), calibrated(Classes())
    output = guard(Net(), classes, on_reject="reclassify")(pixels)
    assert torch.equal(output[REJECTED], classes.classify(pixels)[REJECTED])
    assert torch.equal(output[~REJECTED], plain(classes, pixels)[~REJECTED])
    dark = pixels[~REJECTED]
    assert torch.equal(guard(Net(), classes, on_reject="reclassify")(dark), plain(classes, dark))
    assert guard(Net(), classes, on_reject="reclassify")(pixels[:0]).shape == (0, 10)


def test_images_whose_score_is_nan_are_rejected(bright: Bright) -> None:
    class Lost(Bright):
        def score(self, pixels: Tensor) -> Tensor:
            return torch.where(super().score(pixels) > 0.5, float("nan"), 0.0)

    _, rejected = guard(Net(), calibrated(Lost()), on_reject="flag")(dark_and_bright())
    assert torch.equal(rejected, REJECTED)


@pytest.mark.parametrize("options", [{"on_reject": "flag", "score": True}, {"on_reject": "reclassify"}])
def test_nothing_is_computed_twice(options: dict[str, Any]) -> None:
    classes = calibrated(Classes())
    guard(Net(), classes, **options)(dark_and_bright())
    assert (classes.purified, classes.scored) == (1, 1)  # type: ignore[attr-defined]


def test_real_images_with_the_shipped_assets(images) -> None:
    pixels, _ = images
    vae = purifier.load("demo-plain")
    threshold = purifier.calibrate(vae, "demo").threshold
    strange = torch.cat([pixels[:8], torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))])
    rejected = guard("demo", vae, on_reject="flag", score=True)(strange)[2]
    assert rejected[8:].all() and not rejected[:8].all()
    assert torch.equal(rejected, vae.score(strange) > threshold)
    alone = [guard("demo", vae, on_reject="abstain")(strange[place : place + 1]) for place in range(16)]
    assert torch.equal(torch.cat(alone).isnan().all(1), rejected)


def test_gradients_pass_images_that_are_not_rejected(bright: Bright) -> None:
    leaf = dark_and_bright().requires_grad_()
    guard(Net(), bright, on_reject="abstain", abstain=0)(leaf)[:, 1].clamp(min=-1e9).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert torch.equal(leaf.grad.flatten(1).any(1), ~REJECTED)


@pytest.mark.parametrize("on_reject", ["flag", "abstain", "reclassify"])
def test_guards_that_reject_can_be_copied_pickled_and_exported(on_reject: str) -> None:
    pixels, guarded = dark_and_bright(), guard(Net(), calibrated(Classes()), on_reject=on_reject).eval()
    expected = guarded(pixels)
    program = torch.export.export(guarded, (pixels,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for other in (copy.deepcopy(guarded), copied(guarded), torch.export.load(stored).module()):
        torch.testing.assert_close(other(pixels), expected, equal_nan=True)
    alone = program.module()(pixels[1:2])
    torch.testing.assert_close(alone, guarded(pixels[1:2]), equal_nan=True)


def test_raising_cannot_be_exported(bright: Bright, tmp_path: Path) -> None:
    guarded = guard(Net(), bright, on_reject="raise")
    message = "on_reject='raise' cannot be exported, .* use on_reject='flag'"
    with pytest.raises(ConfigError, match=message):
        torch.export.export(guarded, (dark_and_bright(),))
    with pytest.raises(ConfigError, match=message):
        purifier.export(guarded, tmp_path / "guarded.onnx")
    assert not list(tmp_path.iterdir())


def test_a_guard_keeps_the_threshold_it_was_made_with(bright: Bright) -> None:
    guarded = guard(Net(), bright, on_reject="flag")
    calibrated(bright, 0.0)
    assert torch.equal(guarded(dark_and_bright())[1], REJECTED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_reject": "panic"}, "on_reject must be one of ignore, flag, abstain, raise, reclassify, got 'panic'"),
        ({"on_reject": None}, "got None"),
        ({"on_reject": ["flag"]}, r"got \['flag'\]"),
        ({"abstain": 3}, "abstain needs on_reject='abstain', got 'ignore'"),
        ({"on_reject": "flag", "abstain": 3}, "needs on_reject='abstain', got 'flag'"),
        ({"on_reject": "abstain", "abstain": -1}, "abstain: expected a class, 0 or more, or None for NaN, got -1"),
        ({"on_reject": "abstain", "abstain": True}, "got True"),
        ({"on_reject": "abstain", "abstain": 1.0}, "got 1.0"),
        ({"on_reject": "reclassify"}, r"Bright has no classifier of its own \(classify\)"),
    ],
)
@pytest.mark.parametrize("onnx", [False, True])
def test_wrong_options_are_errors(onnx: bool, options: dict[str, Any], message: str, bright: Bright) -> None:
    from onnx_models import linear

    with pytest.raises(ConfigError, match=message):
        guard(linear() if onnx else Net(), bright, preprocessing=None, **options)


@pytest.mark.parametrize("on_reject", ["flag", "abstain", "raise", "reclassify"])
def test_a_purifier_must_be_calibrated_to_reject(on_reject: str) -> None:
    with pytest.raises(ConfigError, match="Classes has no threshold: it is not calibrated; run `purifier calibrate"):
        guard(Net(), Classes(), on_reject=on_reject)


class Answer(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    hidden: Tensor | None = None


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda logits: (logits, torch.ones(len(logits), 3, 4, 4)), lambda given: given[0]),
    "list": (lambda logits: [logits], lambda given: given[0]),
    "named tuple": (lambda logits: Answer(logits[:, :3], logits), lambda given: given.logits),
    "dict": (lambda logits: {"loss": logits.mean(), "logits": logits}, lambda given: given["logits"]),
    "dict by number": (lambda logits: {7: logits}, lambda given: given[7]),
    "ordered dict": (lambda logits: OrderedDict(logits=logits), lambda given: given["logits"]),
    "dataclass": (lambda logits: Frozen(logits), lambda given: given.logits),
    "one by one": (lambda logits: logits[:, :, None, None], lambda given: given.flatten(1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_reject", ["abstain", "reclassify"])
def test_the_answer_is_replaced_in_an_output_of_any_form(form: str, on_reject: str) -> None:
    make, read = FORMS[form]
    pixels, classes = dark_and_bright(), calibrated(Classes())
    given: list[Any] = []
    net = Net(form=lambda logits: given.append(make(logits)) or given[-1])
    output = guard(net, classes, on_reject=on_reject)(pixels)
    assert type(output) is type(given[-1])
    expected = classes.classify(pixels) if on_reject == "reclassify" else torch.full((6, 10), torch.nan)
    expected = torch.where(REJECTED[:, None], expected, plain(classes, pixels))
    torch.testing.assert_close(read(output), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(read(given[-1]), plain(classes, pixels))  # the classifier's own object stays as it is
    if form == "dict":
        assert output["loss"] is given[-1]["loss"]


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (lambda logits: logits.argmax(1), {}, r"must return logits.*got int64 \(2,\).*; or use on_reject='flag'"),
        (lambda logits: (logits, logits + 1), {}, "2 outputs of the classifier can be its logits"),
        (lambda logits: (logits, logits.argmax(1)), {}, r"output 1: int64 \(2,\) holds a label for each image"),
        (lambda logits: MappingProxyType({"logits": logits}), {}, "a mappingproxy, whose entries cannot be replaced"),
        (None, {"abstain": 10}, "abstain: expected a class from 0 to 9, got 10"),
        (lambda logits: logits[:, :5], {"on_reject": "reclassify"}, "the purifier has 10 classes, .* classifier has 5"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 28, 28), None])
def test_answers_that_cannot_be_replaced_are_errors_of_guard(
    form: Any, options: dict[str, Any], message: str, shape: Any
) -> None:
    class Pooled(Net):
        def forward(self, images: Tensor) -> Any:
            return super().forward(nn.functional.adaptive_avg_pool2d(images[:, :1], 28))

    purifier = calibrated(Classes(BrightConfig(shape)))
    with pytest.raises(PurifierError, match=message):
        guard(Pooled(form=form), purifier, **{"on_reject": "abstain", **options})


def test_the_trial_of_guard_leaves_no_trace(bright: Bright) -> None:
    class Counting(Net):
        def forward(self, images: Tensor, times: int) -> Any:
            self.count = getattr(self, "count", 0) + 1
            return super().forward(images) * times

    net = Counting().train()
    state = torch.get_rng_state()
    guarded = guard(net, bright, on_reject="abstain")  # needs another argument, so guard() cannot try it
    assert net.training and not hasattr(net, "count")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(guarded(dark_and_bright(), 2).isnan().all(1), REJECTED)
    guard(nn.Sequential(Net()).train(), bright, on_reject="abstain")
    assert torch.equal(torch.get_rng_state(), state)


def test_plugins_that_break_the_contract_are_errors() -> None:
    class Scalar(Bright):
        def score(self, pixels: Tensor) -> Tensor:
            return pixels.mean()

    class Flat(Classes):
        def classify(self, pixels: Tensor) -> Tensor:
            return pixels.flatten()

    with pytest.raises(PluginError, match=r"Scalar must return scores \(6,\), got \(\)"):
        guard(Net(), Scalar(), score=True)(dark_and_bright())
    with pytest.raises(PluginError, match=r"classify must return log-probabilities \(N, K\), got \(\d+,\)"):
        guard(Net(), calibrated(Flat()), on_reject="reclassify")(dark_and_bright())
