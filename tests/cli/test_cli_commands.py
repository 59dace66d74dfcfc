"""The options of commands, compared with each other, so that they cannot drift apart."""

from __future__ import annotations

import typer
from typer.main import get_command

from purifier.cli import app

CLASSIFIER = ("weights", "random_weights", "preprocessing", "input", "limit", "output", "output_kind")
GUARD = ("on_reject", "abstain", "on_bad_pixels", "feed", "no_cache")


def options() -> dict[str, dict[str, list[str]]]:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {
        command: {one.name or "": list(one.opts) for one in found.params} for command, found in group.commands.items()
    }


def test_commands_that_take_a_classifier_take_it_the_same_way() -> None:
    taking = {command: given for command, given in options().items() if "classifier" in given}
    assert set(taking) == {"audit", "bench", "certify", "export", "train"}
    for name in CLASSIFIER:
        assert len({tuple(given.get(name, ())) for given in taking.values()}) == 1, name
        assert taking["audit"][name], name


def test_commands_that_make_a_guard_make_the_same_one() -> None:
    found = options()
    for name in GUARD:
        assert len({tuple(found[command][name]) for command in ("audit", "bench", "certify", "export")}) == 1, name
