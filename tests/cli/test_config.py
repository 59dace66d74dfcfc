"""Options from purifier.toml: the command line wins, and what is not known is an error."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from purifier.cli import app
from purifier.cli.config import with_config

AUDIT = """
[audit]
classifier = "demo"
purifier = "identity"
data = "demo:20"
attack = ["fgsm", "pgd:steps=2"]
eps = 0.05
probes = 1
out = "found"
overwrite = true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return dict(group.commands)


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "found" / "report.json").read_text()))


def test_a_file_gives_options_and_the_command_line_wins(folder: Path, command: Any) -> None:
    (folder / "purifier.toml").write_text(AUDIT)
    code, _, said = command("audit", "--eps", "0.1", "--attack=fgsm")
    assert code == 0
    assert "from the configuration: --classifier, --purifier, --data, --probes, --out, --overwrite" in said
    found = report(folder)
    assert [threat["eps"] for threat in found["threats"]] == [0.1]
    assert {row["attack"] for row in found["rows"]} == {"none", "fgsm"}
    words = found["command"]
    assert words[words.index("--data") + 1] == "demo:20" and "--overwrite" in words


def test_the_file_is_chosen_before_the_command(folder: Path) -> None:
    (folder / "purifier.toml").write_text('[audit]\neps = "8/255"\n')
    (folder / "other.toml").write_text("[audit]\nbatch-size = 7\noverwrite = false\n")
    known = commands()
    assert with_config(["audit"], known) == (["audit", "--eps=8/255"], ["--eps"])
    for chosen in (["--config", "other.toml"], ["--config=other.toml"]):
        assert with_config([*chosen, "audit", "-x"], known) == (["audit", "--batch-size=7", "-x"], ["--batch-size"])
    assert with_config(["--no-config", "audit"], known) == (["audit"], [])
    assert with_config(["list"], known) == (["list"], [])
    assert with_config(["--version"], known) == (["--version"], [])
    assert with_config(["nonsense"], known) == (["nonsense"], [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[audit\n", "purifier.toml: cannot be read as TOML"),
        ("[audits]\n", "expected tables named like commands, got 'audits'; did you mean 'audit'?"),
        ("eps = 1\n", "expected tables named like commands, got 'eps'"),
        ("[audit]\nbatchsize = 3\n", "[audit] has no option 'batchsize'; did you mean 'batch-size'?"),
        ("[audit]\nzzz = 3\n", "[audit] has no option 'zzz'; expected one of abstain, attack"),
        ("[train]\nlearning-rate = 3\n", "[train] has no option 'learning-rate'"),
        ("[audit]\neps = {a = 1}\n", "[audit] eps: expected a string, a number, true, false, or a list of those"),
        ("[audit]\neps = [[1]]\n", "[audit] eps: expected a string"),
        ("[audit]\neps = nan\n", "[audit] eps: expected a string"),
        ("[audit]\nhelp = true\n", "[audit] has no option 'help'"),
        ('[audit]\nbatch-size = "many"\n', "--batch-size"),
    ],
)
def test_what_cannot_be_used_is_an_error(text: str, says: str, folder: Path, command: Any) -> None:
    (folder / "purifier.toml").write_text(text)
    code, _, said = command("audit")
    assert code == 2 and says in said.replace("\n", " ")


def test_a_missing_file_is_an_error(folder: Path, command: Any) -> None:
    code, _, said = command("--config", "none.toml", "audit")
    assert code == 2 and "--config: no file none.toml; `purifier init` writes one" in said
    code, _, said = command("--config")
    assert code == 2 and "expected a TOML file, got nothing" in said


def test_init_writes_every_option_and_changes_nothing(folder: Path, command: Any) -> None:
    code, shown, _ = command("init")
    assert code == 0 and "purifier.toml: options of audit, certify, train" in shown
    text = (folder / "purifier.toml").read_text()
    assert tomllib.loads(text) == {key: {} for key in ("audit", "certify", "train", "calibrate", "export", "bench")}
    assert with_config(["audit", "--eps", "1"], commands()) == (["audit", "--eps", "1"], [])
    code, _, said = command("init")
    assert code == 2 and "--overwrite" in said
    assert command("init", "--overwrite")[0] == 0


def test_every_line_of_init_is_an_option_that_can_be_used(folder: Path, command: Any) -> None:
    command("init")
    text = (folder / "purifier.toml").read_text()
    lines = [line.removeprefix("# ") if " = " in line and line.startswith("# ") else line for line in text.splitlines()]
    options = [
        line for line in lines if line.startswith("[") or (" = " in line and line.split(" = ")[0].isidentifier())
    ]
    tables = tomllib.loads("\n".join(options))
    for name, table in tables.items():
        params = [one for one in commands()[name].params if one.param_type_name == "option"]
        plain = {one.opts[0].removeprefix("--") for one in params if "-" not in one.opts[0].removeprefix("--")} - {
            "help"
        }
        assert set(table) == plain
