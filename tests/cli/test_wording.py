"""Messages name options as they are typed."""

from __future__ import annotations

import pytest

from purifier.cli.wording import as_typed

OPTIONS = {name: "--" + name.replace("_", "-") for name in ("on_reject", "eps", "batch_size", "preprocessing", "out")}


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("batch_size must be 1", "--batch-size must be 1"),
        ("a; use on_reject='flag', which", "a; use --on-reject flag, which"),
        ("needs on_reject='flag' or 'abstain', got", "needs --on-reject flag or abstain, got"),
        (
            "say so: preprocessing=purifier.Preprocessing(scale=255, dtype='uint8')",
            "say so: --preprocessing scale=255,dtype=uint8",
        ),
        ("with --preprocessing (preprocessing=)", "with --preprocessing"),
        ("give preprocessing=; then", "give --preprocessing; then"),
        ("give on_reject='flag' (--on-reject)", "give --on-reject flag"),
        ("give out=(C, H, W) (--out CxHxW on the command line), if", "give --out CxHxW, if"),
        ("choose with out= (--out on the command line)", "choose with --out"),
        ("a file (in Python, give it), please", "a file, please"),
        ("out of memory; lower batch_size or eps", "out of memory; lower --batch-size or eps"),
        # Specs, paths and other commands' options are left alone.
        ("such as robust:eps=0.1 or pgd:steps=2,eps=3", "such as robust:eps=0.1 or pgd:steps=2,eps=3"),
        ("cannot read photos/batch_size.npz", "cannot read photos/batch_size.npz"),
        ("use on_bad_pixels='clamp'", "use on_bad_pixels='clamp'"),
    ],
)
def test_options_are_named_as_typed(said: str, typed: str) -> None:
    assert as_typed(said, OPTIONS) == typed


def test_what_was_typed_stays() -> None:
    given = ["audit", "--data", "folder:old eps=1", "--out=run eps=2/a", "batch_size", "--eps=3"]
    for said in ("no folder old eps=1; give another", "run eps=2/a/report.json is there", "no folder batch_size here"):
        assert as_typed(said, OPTIONS, given) == said
    assert as_typed("old eps=1: lower eps=4 or eps=", OPTIONS, given) == "old eps=1: lower --eps 4 or --eps"


def test_without_a_command_nothing_changes() -> None:
    assert as_typed("use on_reject='flag'", {}) == "use on_reject='flag'"
