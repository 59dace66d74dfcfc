"""Users' mistakes that a type checker must see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is in the extra dev, not in test")

ROOT = Path(__file__).parents[1]
RIGHT = """
import torch
import purifier

guarded: purifier.GuardedModule = purifier.guard(torch.nn.Identity(), "identity", on_reject="flag", seed=1)
binary: purifier.GuardedModule = purifier.guard(torch.nn.Identity(), "identity", output=1, output_kind="binary-logit")
either: purifier.GuardedModule | purifier.GuardedSession = purifier.guard("model.onnx", "identity", providers=["CPU"])
report: purifier.AuditReport = purifier.audit(guarded, "demo:4", attacks=["fgsm"])
"""
WRONG = {
    'purifier.guard(torch.nn.Identity(), "identity", on_rejct="flag")': "[call-overload]",
    'purifier.guard(torch.nn.Identity(), "identity", on_reject="flagg")': "[call-overload]",
    'purifier.guard(torch.nn.Identity(), "identity", providers=[])': "[call-overload]",
    'purifier.guard(torch.nn.Identity(), "identity", output_kind="sigmoid")': "[call-overload]",
    'purifier.audit(guarded, "demo:4", attack=["fgsm"])': "[call-arg]",
    'purifier.gard(torch.nn.Identity(), "identity")': "[attr-defined]",
}


@pytest.mark.integration
def test_misspelt_keywords_and_names_fail_mypy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RIGHT + "\n".join(WRONG) + "\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--cache-dir",
        str(tmp_path),
        str(script),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}  # mypy does not follow an editable install
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    errors = [line for line in done.stdout.splitlines() if line.startswith("script.py:") and ": error:" in line]
    first = RIGHT.count("\n") + 1
    for number, code in enumerate(WRONG.values(), first):
        assert any(line.startswith(f"script.py:{number}: error:") and line.endswith(code) for line in errors), (
            done.stdout
        )
    assert all(int(line.split(":")[1]) >= first for line in errors), done.stdout
