"""One bad image never costs the batch: NaN, infinity and values out of range, in torch, sessions and exported files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bad_pixel_models import BAD, COUNT, MANY, Net, graph, images, only, plain, spoilt, which
from torch import Tensor, nn

import purifier
from purifier.errors import ConfigError, PixelError, RejectedError

SPECS = {"raise": {}, "flag": {"on_reject": "flag"}, "abstain": {"on_reject": "abstain"}}
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Answers(NamedTuple):
    logits: Tensor
    rejected: Tensor | None = None


def of_module(guarded: Any, given: Tensor) -> Answers:
    with torch.no_grad():
        found = guarded(given)
    return Answers(*found) if isinstance(found, tuple) else Answers(found)


def of_session(session: Any, given: Tensor) -> Answers:
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    found = dict(zip(names, map(torch.from_numpy, values), strict=True))
    return Answers(found["logits"], found.get("purifier_rejected"))


def made(form: str, path: Path, **options: Any) -> Any:
    """What answers images, made in one of several ways from the same guard, and how it is asked."""
    if form in ("session", "session's graph", "session's file"):
        model = only(graph(), "logits", "prob") if options.get("on_reject") == "abstain" else graph()
        session = purifier.guard(model, which(), output="logits", **options)
        if form == "session":
            return lambda given: of_session(session, given)
        if form == "session's graph":
            return lambda given: of_session(plain(session.model), given)
        written = purifier.export(session, path / "session.onnx").path
        return lambda given: of_session(plain(written), given)
    guarded = purifier.guard(Net().eval(), which(), **options)
    if form == "module's file":
        written = purifier.export(guarded, path / "module.onnx").path
        return lambda given: of_session(plain(written), given)
    if form == "compiled":
        torch.compiler.reset()  # the guards of other tests count as recompilations
        guarded = torch.compile(guarded, backend="eager", fullgraph=True)
    if form == "traced":
        guarded = torch.jit.trace(guarded, images()[:3])
    if form == "torch.export":
        free = ({0: torch.export.Dim("batch")},)
        guarded = torch.export.export(guarded, (images()[:3],), dynamic_shapes={"args": free, "kwargs": {}}).module()
    return lambda given: of_module(guarded, given)


FORMS = [
    *("module", "compiled", "session", "session's graph"),
    *(pytest.param(form, marks=deprecated) for form in ("traced",)),
    *("session's file", "module's file"),
]
SILENT = [form for form in FORMS if form not in ("module", "compiled", "session")]
"""Those that cannot raise errors."""


@pytest.mark.parametrize("values", [{BAD: math.nan}, MANY], ids=["one", "many"])
@pytest.mark.parametrize("on_reject", ["flag", "abstain"])
@pytest.mark.parametrize("form", FORMS)
def test_the_other_images_are_answered_as_without_the_bad_one(
    form: str, on_reject: str, values: dict[int, float], tmp_path: Path
) -> None:
    ask = made(form, tmp_path, on_reject=on_reject, on_bad_pixels="reject")
    expected, found = ask(images()), ask(spoilt(values))
    good = torch.tensor([place not in values for place in range(COUNT)])
    assert torch.equal(found.logits[good].nan_to_num(7), expected.logits[good].nan_to_num(7))
    assert found.logits[~good].isnan().all()
    alone = ask(spoilt(values)[good])
    torch.testing.assert_close(found.logits[good], alone.logits, equal_nan=True, rtol=1e-5, atol=1e-5)
    bright = torch.arange(COUNT) % 2 == 1
    if on_reject == "flag":
        assert torch.equal(found.rejected, bright | ~good)
        assert found.logits[good].isfinite().all()
    else:
        assert torch.equal(found.logits.isnan().all(1), bright | ~good)


@pytest.mark.parametrize("form", FORMS)
def test_a_rejected_bad_image_gets_the_class_of_rejected_images(form: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path, on_reject="abstain", abstain=3, on_bad_pixels="reject")
    row = torch.full((10,), -math.inf).index_fill(0, torch.tensor([3]), 0)
    found = ask(spoilt({2: math.nan, 4: 9.0})).logits
    assert torch.equal(found[[2, 4]], row.expand(2, 10))
    assert torch.equal(found[[0, 6]], ask(images()).logits[[0, 6]])


@pytest.mark.parametrize("form", SILENT)
@pytest.mark.parametrize("on_reject", ["ignore", "flag", "reclassify"])
def test_without_an_error_a_bad_image_gets_no_answer(form: str, on_reject: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path, on_reject=on_reject)
    expected, found = ask(images()), ask(spoilt(MANY))
    bad = torch.tensor([place in MANY for place in range(COUNT)])
    assert torch.equal(found.logits[~bad], expected.logits[~bad]) and expected.logits.isfinite().all()
    assert found.logits[bad].isnan().all()
    if on_reject == "flag":
        assert found.rejected is not None and found.rejected[bad].all()


@pytest.mark.parametrize("form", FORMS)
def test_clamping_saves_what_overshoots_and_nothing_else(form: str, tmp_path: Path) -> None:
    ask, overshooting = made(form, tmp_path, on_bad_pixels="clamp"), images()
    overshooting[::2] = (overshooting[::2] - 0.15) / 0.3 * 1.31 + 0.535  # -0.12 to 1.19, as bicubic resizing gives
    assert overshooting.min() < -0.1 and overshooting.max() > 1.15
    assert torch.equal(ask(overshooting).logits, ask(overshooting.clamp(0, 1)).logits)
    overshooting[BAD, 0, 0, 0], overshooting[2, 0, 0, 0] = math.nan, math.inf
    if form in ("module", "compiled", "session"):
        with pytest.raises(PixelError, match="got NaN in image 17, infinity in image 2 of 64"):
            ask(overshooting)
    else:
        found = ask(overshooting).logits.isnan()
        assert found.all(1).nonzero().flatten().tolist() == [2, BAD] and int(found.sum()) == 20


@pytest.mark.parametrize("form", ["module", "compiled", "session"])
def test_the_error_names_the_images_and_what_is_wrong_with_them(form: str, tmp_path: Path) -> None:
    ask = made(form, tmp_path)
    with pytest.raises(PixelError, match=r"got NaN in images 3 and 17 of 64 \(counted from 0\); fix the code"):
        ask(spoilt({3: math.nan, 17: math.nan}))
    many = r"got NaN in image 3, infinity in images 20 and 41, \[-0.5, 1.5\] in images 17 and 63 of 64.*preprocessing="
    with pytest.raises(PixelError, match=many):
        ask(spoilt(MANY))
    with pytest.raises(PixelError, match=r"\[.*, 1.19\] in image 5 of 64.*on_bad_pixels='clamp'"):
        ask(spoilt({5: 1.19}))
    with pytest.raises(PixelError, match="in images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 54 more of 64"):
        ask(images() * math.nan)
    with pytest.raises(PixelError) as raised:
        ask(images() * 255)
    assert "on_bad_pixels" not in str(raised.value)


def test_a_module_without_check_raises_nothing_and_gives_bad_images_no_answer() -> None:
    expected, found = (
        of_module(purifier.guard(Net().eval(), which(), check=check), given).logits
        for check, given in ((True, images()), (False, spoilt(MANY)))
    )
    bad = torch.tensor([place in MANY for place in range(COUNT)])
    assert torch.equal(found[~bad], expected[~bad]) and found[bad].isnan().all()
    with pytest.raises(RejectedError) as raised:
        purifier.guard(Net().eval(), which(), check=False, on_reject="raise")(spoilt({16: math.nan})[14:20:2])
    assert raised.value.rejected.tolist() == [False, True, False]


def test_vmap_gives_a_bad_image_no_answer() -> None:
    guarded = purifier.guard(Net().eval(), which())
    found = torch.func.vmap(guarded)(spoilt()[:, None]).squeeze(1)
    torch.testing.assert_close(found, guarded(images()).where(~found.isnan(), math.nan), equal_nan=True)
    assert found.isnan().all(1).nonzero().flatten().tolist() == [BAD]


def test_nan_spreads_neither_over_batch_norm_nor_into_gradients() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), Net()).train()
    guarded = purifier.guard(net, which(), on_reject="flag", on_bad_pixels="reject").train()
    given = spoilt(MANY).requires_grad_()
    logits, _ = guarded(given)
    good = torch.tensor([place not in MANY for place in range(COUNT)])
    assert logits[good].isfinite().all() and net[0].running_mean.isfinite().all()
    logits[good].sum().backward()
    assert given.grad is not None and given.grad[good].isfinite().all() and given.grad[good].abs().sum() > 0
    assert not given.grad[~good].any()


@pytest.mark.parametrize("model", [Net().eval(), graph()], ids=["torch", "onnx"])
def test_wrong_options_are_errors(model: Any) -> None:
    for wrong in ("ignore", None, ["clamp"]):
        with pytest.raises(ConfigError, match="on_bad_pixels must be one of raise, reject, clamp, got"):
            purifier.guard(model, which(), on_bad_pixels=wrong)
    for on_reject in ("ignore", "raise", "reclassify"):
        with pytest.raises(ConfigError, match=f"'reject' needs on_reject='flag' or 'abstain', got {on_reject!r}"):
            purifier.guard(model, which(), output="logits", on_reject=on_reject, on_bad_pixels="reject")
