"""Which output is a classifier's answer, and how it becomes logits."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.errors import ClassifierError, ConfigError
from purifier.output import Output

LOGITS, FEATURES = torch.randn((5, 10), generator=torch.Generator().manual_seed(0)), torch.ones(5, 64)
Z = torch.randn(5, generator=torch.Generator().manual_seed(1))


class Named(NamedTuple):
    features: Tensor
    out: Tensor


@dataclasses.dataclass
class Made:
    features: Tensor
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        [LOGITS],
        (LOGITS, 1),
        (torch.arange(5), LOGITS[:, :, None, None]),
        {"loss": torch.tensor(1.0), "logits": LOGITS},
        {"features": FEATURES, "logits": LOGITS},
        OrderedDict(features=FEATURES, logits=LOGITS),
        Made(FEATURES, LOGITS),
        {"out": LOGITS, "map": torch.ones(5, 3, 7, 7)},
        Named(torch.ones(5, 64, 7, 7), LOGITS),
    ],
)
def test_the_answer_is_the_entry_called_logits_or_the_only_one_that_can_be(output: Any) -> None:
    assert torch.equal(Output().logits(output), LOGITS)


@pytest.mark.parametrize(
    ("which", "output"),
    [
        (0, LOGITS),
        (1, (FEATURES, LOGITS)),
        (1, {"logits": FEATURES, "out": LOGITS}),
        ("out", {"logits": FEATURES, "out": LOGITS}),
        ("out", Named(FEATURES, LOGITS)),
        ("features", Made(LOGITS, FEATURES)),
        (0, Made(LOGITS, FEATURES)),
    ],
)
def test_the_user_says_which_output_is_the_answer(which: int | str, output: Any) -> None:
    assert torch.equal(Output(which).logits(output), LOGITS)


@pytest.mark.parametrize(
    ("asked", "output", "message"),
    [
        (Output(), (FEATURES, LOGITS), r"2 outputs .*: 0: float32 \(5, 64\), 1: float32 \(5, 10\); choose .*output="),
        (Output(), {"feat": FEATURES, "p": Z}, r"2 outputs .*: 0: 'feat' float32 \(5, 64\), 1: 'p' float32 \(5,\);"),
        (Output(kind="probabilities"), {"logits": LOGITS, "out": LOGITS}, "2 outputs of the classifier can be its pro"),
        (Output(kind="binary-logit"), (Z, Z[:, None]), "2 outputs of the classifier can be its binary-logit"),
        (Output(2), (FEATURES, LOGITS), "no output at position 2; it returns 0: float32"),
        (Output("p"), {"feat": FEATURES, "out": LOGITS}, "no output 'p'; it returns 0: 'feat' float32"),
        (Output("p"), LOGITS, r"no output 'p'; it returns float32 \(5, 10\)"),
        (Output("labels"), {"labels": torch.arange(5), "out": LOGITS}, r"must return logits.* got 0: 'labels' int64"),
        (Output(0), (torch.ones(5, 3, 7, 7), LOGITS), r"must return logits.* got 0: float32 \(5, 3, 7, 7\)"),
        (Output(kind="binary-logit"), LOGITS, r"must return one logit per image, floats \(N,\) or \(N, 1\), got float"),
        *(
            (Output(), output, "must return logits, .* got one number per image, .*'binary-logit' or 'binary-prob")
            for output in (Z, Z[:, None], {"p": Z}, {"logits": Z[:, None, None, None]})
        ),
        *(
            (Output(), output, r"must return logits, floats \(N, K\), got")
            for output in (torch.rand(2, 10, 2), torch.ones(2, 10, dtype=torch.int64), torch.tensor(1.0), {}, None, "x")
        ),
        (Output(kind="probabilities"), LOGITS, r"expected values in \[0, 1\], got .*; if they are logits, use logits"),
        (Output(kind="probabilities"), LOGITS.sigmoid(), "expected rows that sum to 1, got"),
        (Output(kind="binary-probability"), Z, "expected values in .* use binary-logit"),
    ],
)
def test_an_answer_that_cannot_be_told_is_an_error(asked: Output, output: Any, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        asked.logits(output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": True}, "output: expected a position or a name, got True"),
        ({"which": ""}, "output: expected a position or a name, got ''"),
        ({"which": 1.0}, "got 1.0"),
        ({"which": -1}, "output: expected a position of 0 or more, got -1"),
        ({"kind": "sigmoid"}, "output_kind must be one of logits, probabilities, .* got 'sigmoid'"),
        ({"kind": None}, "got None"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Output(**options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1)])
def test_binary_answers_become_two_columns(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z = Z.to(dtype)
    made = Output(kind="binary-logit").logits(z.view(shape))
    assert torch.equal(made, torch.stack([torch.zeros_like(z), z], 1))
    assert torch.equal(made.argmax(1), (z > 0).long())
    probable = Output(kind="binary-probability").logits(z.sigmoid().view(shape))
    rounding = 2e-3 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(probable, torch.stack([F.logsigmoid(-z), F.logsigmoid(z)], 1), atol=rounding, rtol=1e-3)
    assert torch.equal(probable.argmax(1), (z > 0).long())


def test_class_1_needs_more_than_a_half() -> None:
    half = torch.tensor([0.5])
    around = torch.cat([half.nextafter(torch.zeros(1)), half, half.nextafter(torch.ones(1))])
    assert Output(kind="binary-probability").logits(around).argmax(1).tolist() == [0, 0, 1]
    assert Output(kind="binary-logit").logits(torch.tensor([-1e-45, 0.0, 1e-45])).argmax(1).tolist() == [0, 0, 1]


def test_probabilities_become_their_logarithms_with_the_gradient_of_log_softmax() -> None:
    leaves = [LOGITS.double().requires_grad_() for _ in range(2)]
    made = Output(kind="probabilities").logits(leaves[0].softmax(1))
    wanted = leaves[1].log_softmax(1)
    torch.testing.assert_close(made, wanted)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(2)).double()
    gradients = [
        torch.autograd.grad((out * weights).sum(), leaf)[0] for out, leaf in zip((made, wanted), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_certain_probabilities_have_finite_logits_and_gradients(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    leaf = torch.tensor([[0.0, 1.0], [tiny, 1.0]], dtype=dtype, requires_grad=True)
    made = Output(kind="probabilities").logits(leaf)
    assert made.isfinite().all() and made.argmax(1).tolist() == [1, 1]
    torch.testing.assert_close(made[:, 0], torch.full((2,), tiny, dtype=dtype).log())
    assert torch.autograd.grad(made.sum(), leaf)[0].isfinite().all()
    leaf = torch.tensor([0.0, tiny, 0.5, 1.0], dtype=dtype, requires_grad=True)
    made = Output(kind="binary-probability").logits(leaf)
    assert made.isfinite().all() and made.argmax(1).tolist() == [0, 0, 0, 1]
    assert torch.autograd.grad(made.sum(), leaf)[0].isfinite().all()


def test_nan_stays_nan() -> None:
    lost = torch.full((2, 3), float("nan"))
    assert Output(kind="probabilities").logits(lost).isnan().all()
    assert Output(kind="binary-probability").logits(lost[:, :1]).isnan().all()


def test_a_description_names_what_is_not_the_default() -> None:
    assert Output().describe() == ""
    assert Output("prob", "binary-probability").describe() == ", output 'prob' as binary-probability"
    assert Output(kind="probabilities").describe() == ", output as probabilities"
