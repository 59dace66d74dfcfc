"""``purifier audit`` and ``purifier report``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import purifier
from purifier import Attack
from purifier.auditing.report_versions import SCHEMA_VERSION

MODEL = """
import torch
from torch import nn

from purifier.data.loading import load_data

def make():
    # The nearest class mean.
    pixels, labels = load_data("fashion-mnist:train:500").batch(range(500))
    means = torch.stack([pixels[labels == label].flatten(1).mean(0) for label in range(10)])
    found = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    found[1].weight.data, found[1].bias.data = means, -0.5 * means.square().sum(1)
    return found
"""

TWO_INPUTS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(784, 10)

    def forward(self, other=None, image=None):
        return self.head((other if image is None else 1 - image).flatten(1))

def make():
    return Two()
"""


@dataclass(frozen=True)
class Failing(Attack):
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        raise RuntimeError("out of luck")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder that holds a classifier's module and its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_audit_model.py").write_text(MODEL)
    weight = torch.randn(10, 784, generator=torch.Generator().manual_seed(1))
    torch.save({"1.weight": weight, "1.bias": torch.zeros(10)}, tmp_path / "weights.pt")
    return tmp_path


def arguments(**changed: object) -> list[object]:
    settings = {
        "classifier": "cli_audit_model:make",
        "purifier": "blur",
        "data": "fashion-mnist:test:40",
        "out": "found",
        "attack": "fgsm",
        **changed,
    }
    given = ((f"--{name.replace('_', '-')}", value) for name, value in settings.items())
    return ["audit", "--overwrite", *(part for pair in given for part in pair)]


def test_an_audit_prints_its_table_and_writes_its_report(command, folder):
    code, shown, _ = command(*arguments(eps="8/255"), "--eps", "0.1", "--attack", "pgd:steps=3")
    assert code == 0, shown
    report = json.loads((folder / "found" / "report.json").read_text())
    assert [threat["eps"] for threat in report["threats"]] == [8 / 255, 0.1]
    assert {row["attack"] for row in report["rows"]} == {"none", "fgsm", "pgd:steps=3"}
    for part in ("worst case per image", "white-box", "oblivious", "linf 0.03137", "report found"):
        assert part in shown


def test_the_stored_command_repeats_the_audit(command, folder):
    given = {"eps": "8/255", "route": "bpda", "seed": 3, "probes": 3, "weights": "weights.pt"}
    command(*arguments(**given, preprocessing="mean=0.5,std=0.25"))
    first = json.loads((folder / "found" / "report.json").read_text())
    assert (first["seed"], first["probes"]) == (3, 3)
    assert first["command"][:2] == ["purifier", "audit"]
    assert command(*first["command"][1:])[0] == 3  # random weights
    second = json.loads((folder / "found" / "report.json").read_text())
    for report in (first, second):
        del report["created"]
        for row in report["rows"]:
            del row["seconds"]
    assert first == second


def test_the_input_is_chosen_and_kept_in_the_stored_command(command, folder):
    (folder / "cli_audit_two.py").write_text(TWO_INPUTS)
    counted = {}
    for value in (None, "image", "1"):
        given = {} if value is None else {"input": value}
        code, _, complaint = command(
            *arguments(classifier="cli_audit_two:make", attack="none", data="fashion-mnist:test:500", **given)
        )
        assert code in (0, 3), complaint  # the classifier may be no better than chance
        report = json.loads((folder / "found" / "report.json").read_text())
        counted[value] = report["rows"][0]["correct"]
        stored = report["command"]
        assert ("--input" in stored) == (value is not None)
        assert value is None or stored[stored.index("--input") + 1] == value
    assert counted["image"] == counted["1"] != counted[None]


def test_weights_and_preprocessing_reach_the_classifier(command, folder):
    counted = set()
    for options in ({}, {"weights": "weights.pt"}, {"preprocessing": "mean=3"}):
        command(*arguments(attack="none", data="fashion-mnist:test:500", **options))
        counted.add(json.loads((folder / "found" / "report.json").read_text())["rows"][0]["correct"])
    assert len(counted) == 3


def test_the_joint_attack_runs_within_several_budgets(command, folder):
    code, shown, _ = command(*arguments(attack="joint:steps=3", eps="8/255"), "--eps", "0.1")
    assert code == 0, shown
    report = json.loads((folder / "found" / "report.json").read_text())
    assert report["schema_version"] == SCHEMA_VERSION and report["calibration"] is None
    exact = [row for row in report["rows"] if row["route"] == "exact" and row["model"] == "guarded"]
    assert len(exact) == 2 and all(row["scores_per_image"] > 3 for row in exact)
    for part in ("detection, linf 0.03137", "detection, linf 0.1", "here: joint:steps=3", "not calibrated"):
        assert part in " ".join(shown.split())


def test_a_raised_flag_makes_it_inconclusive_and_says_why(command, folder):
    (folder / "cli_audit_soft.py").write_text(MODEL.replace("784, 10)", "784, 10), nn.Softmax(1)"))
    code, shown, _ = command(*arguments(classifier="cli_audit_soft:make"))
    assert code == 3
    for part in (
        "flag probabilities: all outputs of",
        "why: A softmax is flat",
        "declare them with --output-kind probabilities",
        "remove the softmax or sigmoid from the classifier",
    ):
        assert part in " ".join(shown.split())
    assert "inconclusive: robustness is at most as shown here" in shown
    report = json.loads((folder / "found" / "report.json").read_text())
    assert "probabilities" in [flag["name"] for flag in report["flags"]]


def test_the_gate_fails_on_the_lower_bound_of_the_worst_case(command, folder):
    given = {
        "classifier": "demo",
        "purifier": "identity",
        "data": "demo:20",
        "eps": "0.01",
        "attack": "pgd:steps=5",
        "route": "exact",
        "probes": 1,
    }
    command(*arguments(**given))
    report = json.loads((folder / "found" / "report.json").read_text())
    (case,) = (case for case in report["worst_case"] if case["model"] == "guarded" and case["scope"] == "all")
    between = (case["interval"][0] + case["share"]) / 2
    code, shown, _ = command(*arguments(**given, fail_under=between))
    assert code == 1
    assert f"begins at {case['interval'][0]:.1%}, less than the {between:.1%} of --fail-under" in shown
    assert command(*arguments(**given, fail_under=case["interval"][0]))[0] == 0


def test_a_failed_gate_outranks_a_flag(command, folder):
    (folder / "cli_audit_soft.py").write_text(MODEL.replace("784, 10)", "784, 10), nn.Softmax(1)"))
    assert command(*arguments(classifier="cli_audit_soft:make", fail_under=0.99))[0] == 1
    assert command(*arguments(classifier="cli_audit_soft:make", fail_under=0))[0] == 3


def test_a_gate_needs_a_white_box_attack(command, folder):
    code, shown, _ = command(*arguments(attack="noise", fail_under=0))
    assert code == 3
    assert "gate undecided, linf 0.1: no white-box attack ran" in shown


def test_a_gate_needs_an_attack_of_more_than_one_step(command, folder):
    given = {"classifier": "demo", "purifier": "identity", "data": "demo:20", "eps": "0.01", "probes": 1}
    code, shown, _ = command(*arguments(**given, attack="fgsm", fail_under=0))
    assert code == 3
    assert "gate undecided, linf 0.01: only one-step attacks ran" in shown


def test_a_preset_is_run_and_kept_in_the_stored_command(command, folder):
    given = arguments(preset="quick", data="fashion-mnist:test:20")
    given = given[: given.index("--attack")] + given[given.index("--attack") + 2 :]
    code, _, complaint = command(*given)
    assert code in (0, 3), complaint
    report = json.loads((folder / "found" / "report.json").read_text())
    assert report["preset"] == "quick" and "--preset" in report["command"] and "--attack" not in report["command"]
    assert {"fgsm", "noise"} < {row["attack"] for row in report["rows"]}


def test_a_report_is_printed_again(command, folder):
    _, audited, _ = command(*arguments())
    code, shown, _ = command("report", "found")
    assert code == 0
    assert audited.split("report found")[0].strip() in shown
    assert "made by purifier audit --classifier cli_audit_model:make" in shown


def test_a_failing_attack_makes_it_inconclusive(command, folder):
    purifier.attacks.register("failing", Failing)
    try:
        code, shown, _ = command(*arguments(), "--attack", "failing")
    finally:
        purifier.attacks.unregister("failing")
    assert code == 3
    assert "incomplete" in shown
    report = json.loads((folder / "found" / "report.json").read_text())
    failed = [row for row in report["rows"] if row["attack"] == "failing"]
    assert all("RuntimeError: out of luck, at " in row["error"] and __file__ in row["error"] for row in failed)
    assert not any(case["complete"] for case in report["worst_case"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"eps": "lots"}, "error: --eps: expected a number such as 0.1 or 8/255, got 'lots'"),
        ({"eps": "1/0"}, "error: --eps: expected a number such as 0.1 or 8/255, got '1/0'"),
        ({"eps": "8"}, "at most 1 for linf (pixels are in [0, 1]), got 8.0; try 8/255"),
        ({"norm": "l7"}, "l7"),
        ({"route": "back"}, "error: --route must be one of exact, bpda, oblivious, none, got 'back'"),
        ({"attack": "joint:confidence=no"}, "option 'confidence': expected float, got 'no'"),
        ({"preset": "hard"}, "error: --preset must be one of quick, standard, thorough, got 'hard'"),
        ({"fail_under": 50}, "error: --fail-under: expected a share of images in [0, 1], such as 0.5, got 50.0"),
        ({"attack": "none", "fail_under": 0.5}, "error: --fail-under needs an attack; add one"),
        ({"attack": "foolbox:LinfPDG"}, "LinfPGD"),
        ({"attack": "pgd:40"}, "error: cannot read '40' in 'pgd:40': expected NAME:key=value"),
        ({"attack": "foolbox"}, "error: attack 'foolbox' needs the option 'name'"),
        ({"attack": "pgd:steps=0"}, "error: attack 'pgd': steps and restarts must be at least 1"),
        ({"out": "cli_audit_model.py"}, "error: cannot write cli_audit_model.py"),
        ({"out": "cli_audit_model.py/deep/er"}, "error: cannot write cli_audit_model.py/deep/er"),
        ({"input": "7"}, "got position 7"),
        ({"input": ""}, "error: --input: expected a position such as 1 or a name such as pixel_values, got nothing"),
        ({"preprocessing": "mean=bright"}, "option 'mean': expected numbers"),
        ({"classifier": "cli_audit_model:absent"}, "error: MODEL 'cli_audit_model:absent' failed"),
        ({"batch_size": 0}, "error: --batch-size must be a whole number of at least 1, got 0"),
        ({"abstain": 3}, "error: --abstain needs --on-reject abstain"),
        ({"attack": "joint-square:queries=5"}, "Blur is not calibrated; run `purifier calibrate blur --data DATA"),
    ],
)
def test_bad_input_ends_in_code_2_and_no_report(changed, said, command, folder):
    code, _, complaint = command(*arguments(**changed))
    assert code == 2
    assert said in complaint and "Traceback" not in complaint
    assert not (folder / "found").exists()


def test_a_broken_link_as_the_folder_is_an_error(command, folder):
    (folder / "dangling").symlink_to(folder / "nowhere")
    code, _, complaint = command(*arguments(out="dangling/found"))
    assert code == 2
    assert "error: cannot write dangling/found" in complaint


def test_a_missing_report_ends_in_code_2(command, folder):
    code, _, complaint = command("report", "nowhere")
    assert code == 2 and "error: cannot read nowhere" in complaint
