"""The options of plugins, as ``purifier list NAME`` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest

from purifier import attacks, exporters, purifiers
from purifier.errors import ConfigError
from purifier.option_help import Option, keywords_of, options_of, summary_of


@dataclass(frozen=True)
class Base:
    """Base.

    Parameters
    ----------
    size
        How ``large`` it is,
        in pixels.
    """

    size: int
    hidden: int = field(default=0, init=False)


@dataclass(frozen=True)
class Derived(Base):
    """More, see :class:`Base`. And more.

    Parameters
    ----------
    kind, speed
        Shared text.
    """

    kind: Literal["a", "b"] = "a"
    speed: float | None = None
    shape: tuple[int, ...] = (1, 2)


def test_types_defaults_and_help_come_from_the_class_and_its_bases() -> None:
    assert options_of(Derived) == [
        Option("size", "int", None, "How large it is, in pixels."),
        Option("kind", "one of a, b", "a", "Shared text."),
        Option("speed", "float", "none", "Shared text."),
        Option("shape", "numbers such as 1x28x28", "1 2", ""),
    ]
    assert summary_of(Derived) == "More, see Base. And more."


def test_keyword_only_parameters_of_a_function() -> None:
    def export(path: str, *, batches: Sequence[int] = (1, 2)) -> None:
        """Write.

        Parameters
        ----------
        batches
            Sizes.
        """

    assert keywords_of(export) == [Option("batches", "numbers", "1 2", "Sizes.")]


@pytest.mark.parametrize("name", purifiers.names())
def test_every_option_of_a_purifier_has_help(name: str) -> None:
    assert not [option.name for option in options_of(purifiers.get(name).Config) if not option.help]


@pytest.mark.parametrize("name", attacks.names())
def test_every_option_of_an_attack_has_help(name: str) -> None:
    assert not [option.name for option in options_of(attacks.get(name)) if not option.help]


@pytest.mark.parametrize("name", exporters.names())
def test_every_option_of_an_exporter_has_help(name: str) -> None:
    assert not [option.name for option in keywords_of(exporters.get(name).export) if not option.help]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "vae",
            ["purifier vae: ", "  latent  (int; default 64)", "  image_shape  (numbers such as 1x28x28; required)"],
        ),
        ("pgd", ["attack pgd: ", "  step_size  (float; default none)"]),
        ("onnx", ["exporter onnx: ", "  noise  (one of mean, input; default mean)"]),
        ("identity", ["  no options"]),
    ],
)
def test_the_command_shows_them(name: str, shown: list[str], command) -> None:
    code, out, _ = command("list", name)
    assert code == 0
    lines = out.splitlines()
    assert all(any(line.startswith(text) for line in lines) for text in shown)


def test_an_unknown_name_is_an_error(command) -> None:
    code, _, errors = command("list", "nothing")
    assert code == 2 and "no plugin 'nothing'" in errors


def test_a_mapping_takes_any_other_option() -> None:
    (options,) = (option for option in options_of(attacks.get("foolbox")) if option.name == "options")
    assert options.type == "any other option"
    with pytest.raises(ConfigError):
        attacks.get("foolbox")(name="NoSuchAttack")
