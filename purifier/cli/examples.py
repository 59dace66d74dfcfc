"""Examples below the help of commands."""

from __future__ import annotations

LINES = {
    "audit": (
        "purifier audit --classifier demo --purifier demo --data demo:60 --attack pgd --out audited",
        (
            "purifier audit --classifier model.onnx --purifier vae.safetensors --data folder:photos --preset quick "
            "--eps 8/255 --fail-under 0.5 --fail-under clean=0.85 --out audited"
        ),
        (
            "purifier audit --classifier demo --purifier demo --data demo:300 --attack pgd --baseline before "
            "--tolerance 0.02 --out audited"
        ),
    ),
    "certify": (
        "purifier certify --classifier demo --purifier demo --data demo:20 --sigma 0.1 --out certified",
        (
            "purifier certify --classifier model.onnx --purifier vae.safetensors --data folder:photos --sigma 0.25 "
            "--samples 10000 --out certified"
        ),
    ),
    "report": (
        "purifier report audited",
        "purifier report show audited --to html --out report.html",
        "purifier report diff before audited",
    ),
    "show": (
        "purifier report show audited",
        "purifier report show audited --to html --fail-under 0.5 --out report.html",
        "purifier report show audited --to junit --baseline before --out junit.xml",
    ),
    "diff": ("purifier report diff before audited",),
    "merge": ("purifier report merge part1 part2 part3 --out whole",),
    "schema": ("purifier report schema > report.schema.json",),
}


def examples_of(command: str) -> str | None:
    """The examples of a command as Typer takes them: paragraphs; None if it has none."""
    return "\n\n".join(("Examples:", *LINES[command])) if command in LINES else None
