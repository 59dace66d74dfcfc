"""The command ``purifier``: each command is in its own file; user errors end in exit code 2."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..errors import PurifierError
from ..interrupts import Terminated, held
from ..torch_tools.memory import keep_freed_memory
from .audit import audit
from .bench import bench
from .calibrate import calibrate
from .certify import certify
from .config import with_config
from .console import BROKEN_PIPE, plain_console
from .demo import demo
from .doctor import doctor
from .examples import examples_of
from .export import export
from .init import init
from .list import list_plugins
from .purify import purify
from .report import report
from .train import train
from .wording import as_typed

app = typer.Typer(
    name="purifier",
    help="Put a learned filter in front of an image classifier, and audit both with honest attacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"purifier {version_of('adversarial-purifier')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with options (default: purifier.toml, if there is one).")
    ] = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="Read no purifier.toml.")] = False,
) -> None:
    """Options that come before the command."""


for _name, _command in (
    ("demo", demo),
    ("init", init),
    ("list", list_plugins),
    ("train", train),
    ("calibrate", calibrate),
    ("audit", audit),
    ("certify", certify),
    ("purify", purify),
    ("export", export),
    ("bench", bench),
    ("doctor", doctor),
):
    app.command(_name, epilog=examples_of(_name))(_command)
app.add_typer(report, name="report", epilog=examples_of("report"))


_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
"""What Typer raises for a wrong command line; its copy of click, or click itself, has no public place."""


def _end(number: int, _: object) -> None:
    held.deliver(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 pass, 1 a gate failed, 2 usage or bad input, 3 inconclusive, 141 closed pipe."""
    if arguments is None:
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):  # so that temporary files are removed, and training is saved
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, _end)
        keep_freed_memory()
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    try:
        given, configured = with_config(given, _commands())
        if configured and "--quiet" not in given:
            plain_console(stderr=True, soft_wrap=True).print(
                f"from the configuration: {', '.join(configured)}", markup=False
            )
        sys.exit(typer.main.get_command(app).main(given, prog_name="purifier", standalone_mode=False) or 0)
    except _ClickError as error:
        if not given:  # the error is the help
            _help_and_exit()
        _exit_with_error(_usage(error, given))
    except PurifierError as error:
        _exit_with_error(_as_typed(str(error), given))
    except (OSError, MemoryError, RecursionError) as error:
        _exit_with_error(f"{type(error).__name__}: {error}")
    except SystemExit as end:
        # Typer and rich end with code 1, which here means a failed gate, where their own output has no reader.
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(BROKEN_PIPE)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated as end:
        sys.exit(end.code)


def _commands() -> dict[str, typer.core.TyperCommand]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {name: one for name, one in group.commands.items() if isinstance(one, typer.core.TyperCommand)}


def _command_in(arguments: Sequence[str]) -> tuple[str, typer.core.TyperCommand | typer.core.TyperGroup | None]:
    """The command among the arguments, after the words that call it; ``purifier`` and None if there is none."""
    found: Any = typer.main.get_command(app)
    words = ["purifier"]
    for word in arguments:
        if isinstance(found, typer.core.TyperGroup) and word in found.commands:
            found = found.commands[word]
            words.append(word)
    return " ".join(words), found if len(words) > 1 else None


def _as_typed(message: str, arguments: Sequence[str]) -> str:
    _, command = _command_in(arguments)
    options = {} if command is None else {one.name or "": max(one.opts, key=len) for one in command.params}
    return as_typed(message, {name: typed for name, typed in options.items() if typed.startswith("--")}, arguments)


def _help_and_exit() -> NoReturn:
    app(["--help"], standalone_mode=False)
    sys.exit(2)


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """What Typer found wrong with the command line, and where its options are listed."""
    words, _ = _command_in(arguments)
    return f"{error.format_message().removesuffix('.')}; `{words} --help` lists the options"


def _exit_with_error(message: str) -> NoReturn:
    """Print one line on standard error, and exit with code 2."""
    line = " ".join(f"error: {message}".split())
    plain_console(stderr=True, soft_wrap=True).print(line, markup=False)
    sys.exit(2)
