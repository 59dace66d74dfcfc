"""The check of gradients: wrong ones in each precision, and kinks and ties that are none."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from flag_helpers import LINF, names, raised
from torch import nn

import nets
from broken import (
    Behind,
    Broken,
    DetachedFactor,
    StraightThrough,
)
from purifier import Threat
from purifier.auditing import gradient_check
from purifier.auditing.audit import audit
from purifier.auditing.parts import audited_parts
from purifier.auditing.reach_check import flags_of_reach
from purifier.data.pixels import Preprocessing, into_range
from purifier.guards.guard import guard
from purifier.torch_tools.freezing import freeze

pytestmark = pytest.mark.usefixtures("one_thread")


class Floats(nn.Module):
    """Takes no doubles."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        return images


def test_a_module_without_doubles_is_checked_in_float32(classifier, data):
    before = Behind(classifier, before=Floats())
    assert raised(before, Broken(), data) == []
    flags = raised(before, StraightThrough(), data)
    assert names(flags) == {"gradient-wrong"} and "float32" in flags[0].evidence
    (flag,) = raised(before, DetachedFactor(), data)
    factor = float(re.search(r"directions are ([\d.]+) times what the gradient says", flag.evidence)[1])
    assert flag.name == "gradient-wrong" and factor == pytest.approx(2, abs=0.1)  # of pixels * pixels.detach()


class Clamped(Floats):
    """Images are in range anyway, so this changes nothing but the gradient."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        black_or_white = (images <= 0) | (images >= 1)
        return torch.where(black_or_white, images.detach(), super().forward(images))


class IntoRange(Floats):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return into_range(super().forward(images))


def test_a_clamp_that_cuts_the_gradient_of_black_and_white_pixels_is_seen_in_float32(classifier, data):
    flags = raised(Behind(classifier, before=Clamped()), Broken(), data)
    assert names(flags) == {"gradient-wrong"}
    assert re.search(
        r"0 at every black and white pixel of (\d+) of \1 images, .* use purifier.into_range", flags[-1].evidence
    )
    assert raised(Behind(classifier, before=IntoRange()), Broken(), data) == []


class MaxPool(Broken):
    def purify(self, pixels, noise=None):
        return F.max_pool2d(pixels, 3, 1, 1)


class Median(Broken):
    def purify(self, pixels, noise=None):
        patches = F.unfold(F.pad(pixels, (1, 1, 1, 1), mode="reflect"), 3)
        return patches.view(len(pixels), 9, 28, 28).median(1, keepdim=True).values


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32,)], ids=["both", "float32"])
@pytest.mark.parametrize("filter_", [MaxPool, Median, "demo", "vae:image_shape=1x28x28,channels=4,latent=8"])
@pytest.mark.parametrize("name", ["net", "hardened"])
def test_kinks_and_ties_are_no_wrong_gradients(name, filter_, dtypes, data, monkeypatch):
    kept = {dtype: gradient_check.PRECISIONS[dtype] for dtype in dtypes}
    monkeypatch.setattr(gradient_check, "PRECISIONS", kept)
    guarded = guard(nets.trained(name), filter_ if isinstance(filter_, str) else filter_())
    with freeze(guarded.classifier, guarded.purifier) as device:
        setup = audited_parts(guarded).setup(device)
        batch = setup.batch(data, range(32))
        assert list(gradient_check.flags_of_gradient(setup, batch, [LINF], [])) == []
        for threat in (LINF, Threat("linf", 1.0), Threat("l2", 1.5), Threat("l1", 10.0), Threat("linf", 0.0)):
            assert list(flags_of_reach(setup, batch, [threat])) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_classifier_in_16_bits_has_no_wrong_gradient(dtype, data):
    half = copy.deepcopy(nets.trained("net")).to(getattr(torch, dtype))
    parts = audited_parts(half, preprocessing=Preprocessing(dtype=dtype))
    with freeze(parts.classifier, parts.purifier) as device:
        setup, precisions = parts.setup(device), []
        assert list(gradient_check.flags_of_gradient(setup, setup.batch(data, range(32)), [LINF], precisions)) == []
    assert precisions == ["float64"]


@pytest.mark.parametrize(("single", "precision"), [(False, "float64"), (True, "float32")])
def test_the_report_says_in_which_precision_gradients_were_checked(single, precision, classifier, data):
    model = Behind(classifier, before=Floats()) if single else classifier
    assert audit(model, data, attacks=("fgsm",), eps=0.05, probes=2).gradient_check == precision


def test_no_precision_is_named_where_no_gradient_was_checked(classifier, onnx_classifier, data, queries_only):
    assert audit(classifier, data, attacks=()).gradient_check is None
    assert audit(onnx_classifier, data, attacks=("square:queries=2",), probes=2).gradient_check is None
