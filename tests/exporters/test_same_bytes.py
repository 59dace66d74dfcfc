"""The same guard and options give the same bytes, in any process, folder and order of hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import purifier
guarded = purifier.guard({classifier}, {purifier!r})
options = {{"data": "demo:80", "sample": 1, "min_agreement": 0.0}} if {precision!r} == "int8" else {{}}
for _ in range({times}):
    purifier.export(guarded, sys.argv[1], precision={precision!r}, **options)
"""


def exported(folder: Path, seed: int, times: int, **values: object) -> str:
    """The SHA-256 of a file that another process has exported ``times`` times, the last time counts."""
    folder.mkdir()
    program = PROGRAM.format(times=times, **values)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PURIFIER_CACHE": "0"}
    subprocess.run(
        [sys.executable, "-c", program, "guarded.onnx"], cwd=folder, env=environment, check=True, timeout=300
    )
    return hashlib.sha256((folder / "guarded.onnx").read_bytes()).hexdigest()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("purifier", "made_of", "precision"),
    [
        *(("demo", made_of, precision) for made_of in ("torch", "onnx") for precision in ("fp32", "fp16", "int8")),
        ("latent:base=demo-plain,steps=2", "torch", "int8"),  # where nodes are named by their places
    ],
)
def test_two_processes_export_the_same_bytes(purifier: str, made_of: str, precision: str, tmp_path: Path) -> None:
    classifier = '"demo"'
    if made_of == "onnx":
        source = tmp_path / "classifier.onnx"
        guarded = "purifier.guard('demo', 'identity')"
        write = f"import purifier; purifier.export({guarded}, {str(source)!r}, image_shape=(1, 28, 28))"
        subprocess.run([sys.executable, "-c", write], check=True, timeout=300)
        classifier = repr(str(source))
    values = {"classifier": classifier, "purifier": purifier, "precision": precision}
    first = exported(tmp_path / "one", 1, 1, **values)
    assert exported(tmp_path / "another place", 2, 2, **values) == first
