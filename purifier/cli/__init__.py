"""The command ``purifier``: each command is in its own file; user errors end in exit code 2."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Annotated, NoReturn

import typer

from ..errors import PurifierError
from ..torch_tools.memory import keep_freed_memory
from ..training.interrupts import Terminated, held
from .audit import audit
from .calibrate import calibrate
from .console import BROKEN_PIPE, plain_console
from .demo import demo
from .doctor import doctor
from .export import export
from .list import list_plugins
from .purify import purify
from .report import report
from .train import train

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
) -> None:
    """Options that come before the command."""


for _name, _command in (
    ("demo", demo),
    ("list", list_plugins),
    ("train", train),
    ("calibrate", calibrate),
    ("audit", audit),
    ("report", report),
    ("purify", purify),
    ("export", export),
    ("doctor", doctor),
):
    app.command(_name)(_command)


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
    try:
        app(arguments)
    except PurifierError as error:
        _exit_with_error(_as_typed(str(error)))
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


def _as_typed(message: str) -> str:
    """The message; an option at its beginning is named as it is typed: ``batch_size must`` -> ``--batch-size must``."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    options = {name for command in group.commands.values() for one in command.params for name in one.opts}
    found = re.match(r"(\w+)(?=: | must | needs |=)", message)
    typed = "--" + found[1].replace("_", "-") if found else ""
    return typed + message[len(typed) - 2 :] if typed in options else message


def _exit_with_error(message: str) -> NoReturn:
    """Print one line on standard error, and exit with code 2."""
    line = " ".join(f"error: {message}".split())
    plain_console(stderr=True, soft_wrap=True).print(line, markup=False)
    sys.exit(2)
