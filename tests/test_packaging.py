"""The wheel: one top-level name, no file missing, third-party plugins, outside the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"purifier": "purifier", "plugins": "purifier/plugins", "exporters": "purifier/exporters"}


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE", "COV_"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**clean, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def build_wheel(source: Path, out: Path) -> Path:
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, folder=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build_wheel(source, folder / "dist")


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment with both wheels, on top of the installed dependencies."""
    folder = tmp_path_factory.mktemp("fresh")
    venv = folder / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv, folder=folder).returncode == 0
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    acme = folder / "acme"
    shutil.copytree(ROOT / "tests" / "third_party", acme, ignore=shutil.ignore_patterns("__pycache__"))
    for built in (wheel, build_wheel(acme, folder / "acme-dist")):
        command = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install")
        done = run(*command, "--no-deps", "--no-index", "--ignore-installed", "--quiet", built, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return venv / "bin"


@pytest.mark.integration
def test_one_top_level_name_and_no_file_missing(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert {name.partition("/")[0] for name in packed} == {"purifier"}
    wanted = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    assert packed == wanted


@pytest.mark.integration
def test_the_installed_command_lists_everything_from_anywhere(fresh: Path, tmp_path: Path) -> None:
    done = run(fresh / "purifier", "list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (
        "vae",
        "identity",
        "fgsm",
        "pgd",
        "onnx",
        "acme-median",
        "acme-corner",
        "acme-purifier-plugins 0.3",
    ):
        assert name in done.stdout
    code = "import purifier, pathlib; print(pathlib.Path(purifier.purifiers.get('vae').__init__.__code__.co_filename))"
    where = run(fresh / "python", "-c", code, folder=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(fresh.parent)


@pytest.mark.integration
def test_a_third_party_has_the_rights_of_a_built_in(fresh: Path, tmp_path: Path) -> None:
    code = (
        "import purifier, pathlib; from purifier.testing import check_attack, check_purifier\n"
        "check_purifier(purifier.load('acme-median:size=3'), tmp_path=pathlib.Path('.'))\n"
        "check_attack(purifier.attacks.get('acme-corner')())"
    )
    checked = run(fresh / "python", "-c", code, folder=tmp_path)
    assert checked.returncode == 0, checked.stderr
    arguments = (
        "audit --classifier demo --purifier acme-median --data demo:40 --attack acme-corner --attack pgd:steps=5 "
        "--eps 0.2 --out audited"
    )
    audited = run(fresh / "purifier", *arguments.split(), folder=tmp_path)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    report = json.loads((tmp_path / "audited" / "report.json").read_text())
    assert report["purifier"]["plugin"] == "acme-median"
    guarded = {
        row["route"]: row for row in report["rows"] if row["model"] == "guarded" and row["attack"] == "acme-corner"
    }
    clean = next(row for row in report["rows"] if row["model"] == "guarded" and row["attack"] == "none")
    assert guarded["none"]["correct"] < clean["correct"]


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join((target, *path.parent.relative_to(ROOT / folder).parts)).replace("/", ".")
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed) == found


def test_no_file_names_the_plugin_packages() -> None:
    """Only entry points do: a plugin imported by another name would be a second class object."""
    naming = re.compile(r"purifier\.(plugins|exporters)\b|^\s*(from|import)\s+(plugins|exporters)\b", re.MULTILINE)
    group = 'Registry("purifier.exporters", Exporter)'
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert not naming.search(path.read_text().replace(group, "")), path
