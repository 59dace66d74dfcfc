"""Shell completion, and the examples below the help."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer

from purifier.cli import app
from purifier.cli.completing import attack_names, preset_names, purifier_names
from purifier.cli.examples import LINES, examples_of
from purifier.contracts.checkpoint import SHIPPED


def test_names_are_completed_without_loading_plugins() -> None:
    assert attack_names("apgd") == ["apgd-ce", "apgd-dlr", "apgd-t"] and "none" in attack_names("")
    assert purifier_names("dem") == ["demo", "demo-certified", "demo-plain"]
    assert {"vae", "latent", "none", *SHIPPED} < set(purifier_names(""))
    assert preset_names("") == ["quick", "standard", "thorough"] and preset_names("x") == []


def completed(words: str, place: int) -> list[str]:
    code = "import sys; sys.argv[0] = 'purifier'; from purifier.cli import main; main()"
    environment = {"_PURIFIER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_shell_gets_commands_options_and_names() -> None:
    assert completed("purifier rep", 1) == ["report"]
    assert completed("purifier audit --toler", 2) == ["--tolerance"]
    assert completed("purifier audit --preset th", 3) == ["thorough"]
    assert completed("purifier report show x --to ju", 5) == ["junit"]


def test_completion_can_be_installed(command) -> None:
    shown = command("--help")[1]
    assert "--install-completion" in shown and "--show-completion" in shown


def example_lines() -> list[str]:
    return list(dict.fromkeys(line for lines in LINES.values() for line in lines))


@pytest.mark.parametrize("line", example_lines())
def test_every_example_is_a_command_line_that_is_understood(line: str) -> None:
    found: Any = typer.main.get_command(app)
    program, *words = shlex.split(line.partition(" >")[0])
    assert program == "purifier"
    while isinstance(found, typer.core.TyperGroup):
        name, words = (words[0], words[1:]) if words[0] in found.commands else ("show", words)
        found = found.commands[name]
    context = found.make_context(found.name, words)  # raises for an option or value that does not exist
    assert not context.args


def test_help_ends_with_examples(command) -> None:
    for words, name in ((["audit"], "audit"), (["report"], "report"), (["report", "show"], "show")):
        shown = " ".join(command(*words, "--help")[1].split())
        examples = examples_of(name)
        assert examples is not None and shown.endswith(" ".join(examples.split()))
    assert examples_of("list") is None
