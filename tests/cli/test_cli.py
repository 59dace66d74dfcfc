"""The command line as a whole: version, lists, errors with exit code 2 and no traceback, and the demo."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import onnxruntime
import pytest

import purifier
from purifier.contracts.checkpoint import SHIPPED
from purifier.contracts.registry import Entry
from purifier.data.loading import load_data

# The package's own attribute of this name is the command.
demo = importlib.import_module("purifier.cli.demonstration")
plugin_list = importlib.import_module("purifier.cli.list")


def test_version(command) -> None:
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith("purifier 0.")


def test_no_command_shows_help(command) -> None:
    code, out, err = command()
    assert code == 2
    for name in (
        "demo",
        "init",
        "list",
        "train",
        "calibrate",
        "audit",
        "report",
        "purify",
        "export",
        "bench",
        "doctor",
    ):
        assert re.search(rf"^\W*{name} +[A-Z]", out + err, flags=re.MULTILINE), name


def test_list_shows_every_plugin(command) -> None:
    code, out, _ = command("list")
    assert code == 0
    for name in (*purifier.purifiers, *purifier.attacks, *purifier.exporters):
        assert name in out


def test_list_has_one_line_per_plugin_under_its_distribution(command) -> None:
    _, out, _ = command("list")
    lines = out.splitlines()
    owner = f"adversarial-purifier {version('adversarial-purifier')}"
    assert max(map(len, lines)) <= 100
    assert owner in lines
    assert ["purifier", "bit-depth", "purifier.plugins.purifiers.baselines:BitDepth"] in [
        line.split() for line in lines
    ]


def test_list_reports_a_clash(command, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [Entry("pgd", "a:A", "one", "1"), Entry("pgd", "b:B", "two", "2")]
    monkeypatch.setattr(plugin_list, "installed", lambda group: twice if group == "purifier.attacks" else [])
    _, out, _ = command("list")
    assert out.count("clash: two distributions, neither loads") == 2
    assert "two 2 attack pgd b:B clash" in " ".join(out.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("audit --classifier demo --purifier absent.safetensors --data demo --out x", "no file absent.safetensors"),
        ("audit --classifier demo --purifier vea --data demo --out x", "no plugin 'vea'; did you mean 'vae'?"),
        ("audit --classifier resnet --purifier identity --data demo --out x", "cannot read MODEL 'resnet'"),
        ("audit --classifier demo --purifier identity --data nowhere --out x", "nowhere"),
        ("audit --classifier demo --purifier identity --data demo --attack dgp --out x", "no plugin 'dgp'"),
        ("audit --classifier demo --purifier identity --data demo --eps 3 --out x", "eps must be at most 1"),
        (
            "audit --classifier demo --purifier vae:image_shape=3x32x32 --data demo --out x",
            "expected images (N, 3, 32, 32)",
        ),
        ("export --classifier demo --purifier identity --out x.onnx", "--image-shape"),
        ("train identity --data demo --out x.safetensors", "nothing to train"),
        ("train vae --data demo --out x.onnx", "ending in .safetensors"),
        (
            "train vae:latent=8,channels=2 --data demo --out x.safetensors",
            "options go in --set: vae --set latent=8 --set channels=2",
        ),
        ("audit --classifier demo --purifier identity --data demo --input 7 --out a/b", "got position 7"),
        ("export --classifier demo --purifier identity --out x.onnx --input photo", "got 'photo'"),
        ("report absent", "cannot read absent"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*line.split())
    assert code == 2
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert list(tmp_path.rglob("*")) == []


def test_errors_of_the_operating_system_are_one_line_too(command, tmp_path: Path) -> None:
    name = "x" * 300
    code, _, err = command("export", "--classifier", "demo", "--purifier", "demo", "--out", tmp_path / f"{name}.onnx")
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.integration
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_command_removes_its_temporary_file(tmp_path: Path, name: str) -> None:
    code = (
        "import os, signal, sys, time; from purifier.atomic import atomic_path; from purifier.cli import app, main\n"
        "@app.command('stuck')\n"
        "def stuck():\n"
        "    with atomic_path('x.onnx') as temporary:\n"
        f"        print(temporary.exists(), flush=True); os.kill(os.getpid(), signal.{name}); time.sleep(60)\n"
        "sys.argv[1:] = ['stuck']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stdout.strip() == "True"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_a_terminated_audit_ends_and_blames_no_attack(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, purifier\n"
        "def perturb(self, target, pixels, labels, threat, generator): os.kill(os.getpid(), signal.SIGTERM)\n"
        "Stuck = type('Stuck', (purifier.Attack,), {'needs': 'labels', 'norms': ('linf',), 'perturb': perturb})\n"
        "purifier.attacks.register('stuck', Stuck)\n"
        "sys.argv[1:] = 'audit --classifier demo --purifier demo --data demo:9 --attack stuck --out x'.split()\n"
        "from purifier.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 143, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["audit.journal"]


@pytest.mark.parametrize("line", ["audit", "nonsense", "train vae --epochs many --data demo --out x"])
def test_wrong_usage_is_exit_code_2(command, line: str) -> None:
    code, _, err = command(*line.split())
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help` lists the options" in err


WRITTEN_BY_DEMO = [
    "guarded.onnx",
    "guarded.onnx.json",
    *(f"{folder}/{name}" for folder in ("plain", "robust") for name in ("examples.npz", "report.json", "results.npz")),
    "strip.png",
]


@pytest.mark.integration
def test_the_whole_demo(command, tmp_path: Path) -> None:
    made = tmp_path / "made [red]"
    code, out, _ = command("demo", "--out", made)
    assert code == 0
    files = sorted(path for path in made.rglob("*") if path.is_file())
    assert [str(path.relative_to(made)) for path in files] == WRITTEN_BY_DEMO
    assert all(f" {path}" in out for path in files if path.suffix != ".npz" and path.name != "guarded.onnx.json")
    assert "the same class as torch on 300 of 300 clean images" in out
    assert "the same class as torch on 8 of 8 adversarial images" in out
    figures = {}
    for name in ("plain", "robust"):
        rows = json.loads((made / name / "report.json").read_text())["rows"]
        figures[name] = {(row["model"], row["attack"], row["route"]): row["share"] for row in rows}
        assert figures[name]["undefended", "none", None] > 0.88
        assert figures[name]["undefended", "pgd", "exact"] < 0.1
        assert figures[name]["guarded", "pgd", "oblivious"] > figures[name]["undefended", "pgd", "exact"] + 0.2
    # A plain VAE helps against who does not know it, and not against who does; the robust one against both.
    plain, robust = figures["plain"], figures["robust"]
    assert plain["guarded", "pgd", "exact"] < plain["guarded", "pgd", "oblivious"] - 0.2
    assert robust["guarded", "pgd", "exact"] > 0.65 > 0.2 > plain["guarded", "pgd", "exact"]
    assert robust["guarded", "none", None] > 0.8
    line = next(line for line in out.splitlines() if "pgd, exact" in line)
    for figure in (
        plain["undefended", "pgd", "exact"],
        *(figures[name]["guarded", "pgd", "exact"] for name in figures),
    ):
        assert f"{figure:.1%} [" in line
    pixels, _ = load_data("demo").batch(range(3))
    session = onnxruntime.InferenceSession(made / "guarded.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0].shape == (3, 10)


@dataclass(frozen=True)
class Failing(purifier.Attack):
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        raise RuntimeError("out of luck")


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the demo on 8 images with a short attack."""
    monkeypatch.setattr(demo, "ATTACK", "pgd:steps=4")
    monkeypatch.setattr(demo, "load_data", lambda spec: load_data(f"{spec}:8"))


@pytest.fixture
def other_purifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the demo with purifiers that are quicker to attack than the shipped one that descends."""
    monkeypatch.setattr(demo, "PURIFIERS", {"plain": "blur", "robust": "demo-plain"})


@pytest.mark.usefixtures("small_demo", "other_purifiers")
def test_a_small_demo_writes_reports_a_picture_and_the_guard(command, tmp_path: Path) -> None:
    code, out, _ = command("demo", "--out", tmp_path)
    assert code == 0
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == WRITTEN_BY_DEMO
    assert "the same class as torch on 8 of 8 clean images" in out


@pytest.mark.usefixtures("small_demo", "other_purifiers")
def test_a_demo_whose_audit_is_incomplete_is_inconclusive(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ATTACK", "failing")
    purifier.attacks.register("failing", Failing)
    try:
        code, out, _ = command("demo", "--out", tmp_path)
    finally:
        purifier.attacks.unregister("failing")
    assert code == 3
    assert "incomplete" in out
    assert sorted(path.parent.name for path in tmp_path.rglob("report.json")) == ["plain", "robust"]


@pytest.mark.usefixtures("small_demo", "other_purifiers")
def test_a_demo_whose_file_is_not_the_guard_fails(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export_another(guarded, path):
        return purifier.export(purifier.guard(guarded.classifier, "blur:sigma=9"), path, image_shape=(1, 28, 28))

    monkeypatch.setattr(demo, "export", export_another)
    code, _, err = command("demo", "--out", tmp_path)
    assert code == 2
    assert re.search(r"guarded\.onnx in onnxruntime gives another class than torch on \d+ of 8 clean images", err)


def test_assets_stay_small() -> None:
    folder = Path(purifier.__file__).parent / "assets"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert sizes.pop(SHIPPED["colour-32"]) <= 6_000_000
    assert sum(sizes.values()) < 10_000_000
    assert sizes[SHIPPED["demo-certified"]] + sizes[SHIPPED["demo"]] <= 8_000_000


def test_shipped_images_are_the_first_of_the_real_test_set(fashion) -> None:
    demo = load_data("demo")
    for shipped, real in zip(demo.batch(range(300)), fashion.batch(range(300)), strict=True):
        assert (shipped == real).all()


def test_a_closed_pipe_is_exit_code_141() -> None:
    # No reader: the first write fails.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "purifier", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
