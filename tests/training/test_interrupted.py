"""Real processes that a signal ends inside an epoch, and what they leave to resume from."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from purifier.contracts.checkpoint import read_tensors
from purifier.contracts.purifier import purifiers
from purifier.training.loop import train
from purifier.training.progress import Progress
from training_helpers import Noisy, same

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.integration]

DATA = "fashion-mnist:train:100"
CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
place, number, call, steps, helpers, *sys.argv[1:] = sys.argv[1:]
sys.path.insert(0, helpers)
from purifier.contracts.purifier import purifiers
from purifier.training import epoch, optimisation, progress
from training_helpers import Noisy
purifiers.register("noisy", Noisy)
progress.REPORT_STEPS = int(steps)
calls = 0
def sends(function, *, after):
    def wrapped(*arguments, **options):
        global calls
        calls += 1
        found = function(*arguments, **options) if after else None
        if calls == int(call):
            os.kill(os.getpid(), int(number))
        return found if after else function(*arguments, **options)
    return wrapped
if place == "forward":  # it has changed the buffers, and the weights are still to come
    epoch._Step.forward = sends(epoch._Step.forward, after=True)
elif place == "update":  # some of the weights have changed
    torch.nn.utils.clip_grad_norm_ = sends(torch.nn.utils.clip_grad_norm_, after=True)
    optimisation.Follower._update = sends(optimisation.Follower._update, after=False)
else:
    epoch.check = sends(epoch.check, after=True)
from purifier.cli import main
main()
"""
ROBUST = {"recipe": "robust:ramp=0.5", "classifier": "demo", "augment": "flip", "optimizer": "muon", "ema": 0.9}
RUNS: dict[str, dict[str, Any]] = {
    "noisy": {"plugin": "noisy", "epochs": 3, "lr": 0.01, "ema": 0.9, "augment": "shift", "clip": 1.0},
    "robust": {"plugin": "vae", "config": {"channels": 2, "latent": 4}, "epochs": 2, "precision": "float32", **ROBUST},
    "gmvae": {"plugin": "gmvae", "config": {"channels": 2, "latent": 4, "components": 3}, "epochs": 5, "lr": 3e-3},
}
"""Each has four steps in an epoch."""


@pytest.fixture(autouse=True)
def noisy() -> Iterator[None]:
    purifiers.register("noisy", Noisy)
    yield
    purifiers.unregister("noisy")


def interrupted(
    options: dict[str, Any], out: Path, place: str, number: int, call: int, *more: str, steps: int = 20
) -> tuple[int, str]:
    """Run the command until it sends itself a signal: its exit code and what it printed."""
    named = {name: value for name, value in options.items() if name not in ("plugin", "config")}
    arguments = ["train", options["plugin"], "--data", DATA, "--out", str(out), "--batch-size", "25", *more]
    arguments += [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    for name, value in options.get("config", {}).items():
        arguments += ["--set", f"{name}={value}"]
    head = [sys.executable, "-c", CHILD, place, str(number), str(call), str(steps), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*head, *arguments], capture_output=True, text=True, timeout=300, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def run(options: dict[str, Any], out: Path, **more: Any) -> Any:
    given = {**options, **more}
    return train(given.pop("plugin"), DATA, out, batch_size=25, **given)


def log_of(out: Path) -> list[tuple[object, ...]]:
    lines = [json.loads(line) for line in out.with_name(f"{out.stem}.log.jsonl").read_text().splitlines()]
    return [tuple(entry[name] for name in ("epoch", "step", "loss", "terms", "figures")) for entry in lines[1:]]


@pytest.mark.parametrize(
    ("which", "place", "number", "call", "reached"),
    [
        ("noisy", "forward", signal.SIGTERM, 7, (2, 2)),
        ("noisy", "update", signal.SIGINT, 5, (1, 3)),
        ("robust", "forward", signal.SIGHUP, 7, (2, 2)),
        ("robust", "update", signal.SIGTERM, 12, (2, 2)),
        ("robust", "check", signal.SIGTERM, 1, (2, 4)),
        ("gmvae", "forward", signal.SIGTERM, 11, (3, 2)),
        ("gmvae", "forward", signal.SIGTERM, 16, (4, 3)),
    ],
)
def test_an_interrupted_command_resumes_bit_for_bit(
    which: str, place: str, number: signal.Signals, call: int, reached: tuple[int, int], tmp_path: Path
) -> None:
    options, out = RUNS[which], tmp_path / "p.safetensors"
    code, said = interrupted(options, out, place, number, call)
    assert code == 128 + number, said
    state = tmp_path / "p.train.safetensors"
    epoch, step = reached
    assert f"{state} holds it up to epoch {epoch}, step {step}; go on with the same arguments and --resume" in said
    assert {path.name for path in tmp_path.iterdir()} - {"p.log.jsonl", "p.train-checked.safetensors"} == {state.name}
    seen: list[Progress] = []
    resumed = run(options, out, resume=True, progress=seen.append)
    assert [now.images for now in seen if now.phase == "training"][:1] in ([(epoch - 1) * 100 + step * 25 + 25], [])
    straight = run(options, tmp_path / "straight.safetensors")
    assert same(straight, resumed)
    assert log_of(out) == log_of(tmp_path / "straight.safetensors")
    assert sorted(path.name for path in tmp_path.glob("p.*")) == ["p.log.jsonl", "p.safetensors"]


@pytest.mark.parametrize("which", ["noisy", "robust", "gmvae"])
def test_a_killed_process_resumes_from_a_state_inside_an_epoch(which: str, tmp_path: Path) -> None:
    options, out = RUNS[which], tmp_path / "p.safetensors"
    code, said = interrupted(options, out, "forward", signal.SIGKILL, 8, "--save-minutes", "0", steps=1)
    assert code == -signal.SIGKILL, said
    described = read_tensors(tmp_path / "p.train.safetensors")[1]["purifier.training"]["within"]
    assert (described["epoch"], described["step"]) == (2, 3)
    resumed = run(options, out, resume=True)
    assert same(run(options, tmp_path / "straight.safetensors"), resumed)
    assert log_of(out) == log_of(tmp_path / "straight.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_at_the_same_step_and_resume(number: signal.Signals, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name: str, *more: str) -> list[str]:
        made = f"-m purifier train vae --data {DATA} --out {tmp_path / name}.safetensors --batch-size 10 --epochs 40"
        return [*launch, *made.split(), "--set", "channels=2", "--set", "latent=4", "--augment", "flip", *more]

    with subprocess.Popen(command("p"), stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = ""
        while "epoch 1/40, 10 of 4000 images" not in said and process.poll() is None:
            said += process.stderr.readline()
        process.send_signal(number)
        said += process.stderr.read()
    state = tmp_path / "p.train.safetensors"
    assert process.returncode != 0 and state.exists(), said
    assert re.search(
        r"p\.train\.safetensors holds it up to (epoch \d+, step \d+|the end of epoch \d+); go on with", said
    )
    for arguments in (command("p", "--resume"), command("straight")):
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    found, wanted = (read_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("p", "straight"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
