"""``--preprocessing``: numbers with commas or spaces, and what is no number is an error."""

from __future__ import annotations

import pytest

from purifier import Preprocessing
from purifier.cli.options import read_preprocessing_option
from purifier.data.preprocessing import IMAGENET
from purifier.errors import PurifierError

HALF, QUARTER = (0.5, 0.4, 0.3), (0.25, 0.2, 0.25)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("mean=0.5 0.4 0.3,std=0.25 0.2 0.25", Preprocessing(HALF, QUARTER)),
        ("mean=0.5,0.4,0.3,std=0.25 0.2 0.25", Preprocessing(HALF, QUARTER)),
        ("mean=.5, .4, .3, std=.25 .2,.25, layout=NHWC", Preprocessing(HALF, QUARTER, layout="NHWC")),
        ("mean=[0.5, 0.4, 0.3],std=(0.25,0.2,0.25)", Preprocessing(HALF, QUARTER)),
        ("mean=-0.5,+1e-1", Preprocessing((-0.5, 0.1))),
        ("scale=255,layout=NHWC,dtype=uint8", Preprocessing(scale=255, layout="NHWC", dtype="uint8")),
        (
            "resize=256,crop=224x192,interpolation=bicubic",
            Preprocessing(resize=256, crop=(224, 192), interpolation="bicubic"),
        ),
        ("imagenet", IMAGENET),
        (None, None),
    ],
)
def test_numbers_are_separated_by_commas_or_spaces(text: str | None, read: Preprocessing | None) -> None:
    assert read_preprocessing_option(text) == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean=x", "option 'mean': expected numbers such as 0.5 0.5 0.5, got 'x'"),
        ("mean=", "option 'mean': expected numbers such as 0.5 0.5 0.5, got ''"),
        ("mean=0.5,x", "expected KEY=VALUE"),
        ("mean=0.5xx0.5", "expected numbers"),
        ("mean=0.5,,0.5", "expected KEY=VALUE,.* got 'mean=0.5,,0.5'"),
        ("mean=0.5,mean=0.5", "each key once"),
        ("imagenet21k", "expected KEY=VALUE,.* such as mean=0.5,0.5,0.5,.* or imagenet, got 'imagenet21k'"),
        ("", "expected KEY=VALUE"),
        ("crop=0", "crop must be a size"),
        ("colour=3", "has no option 'colour'; its options are: mean, std"),
    ],
)
def test_what_is_no_number_is_an_error(text: str, message: str) -> None:
    with pytest.raises(PurifierError, match=message):
        read_preprocessing_option(text)


def test_the_command_says_so(command) -> None:
    arguments = "audit --classifier demo --purifier none --data demo:8 --out unused --preprocessing mean=x"
    code, _, said = command(*arguments.split())
    assert code == 2 and "--preprocessing: option 'mean': expected numbers such as 0.5 0.5 0.5, got 'x'" in said
