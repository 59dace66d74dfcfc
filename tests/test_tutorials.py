"""Every command of the tutorial on audits in CI runs, in the order of the page, and ends as the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ci.md"
EXIT = re.compile(r"# exit code (\d+)$")


def blocks() -> list[tuple[str, str, str]]:
    """Language, title and text of each block of code."""
    return re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_github_action_on_the_page_is_the_example() -> None:
    (shown,) = (text for language, _, text in blocks() if language == "yaml")
    assert shown == (ROOT / "examples" / "audit_in_ci" / "robustness.yml").read_text()


@pytest.mark.integration
def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    ran = []
    for language, title, text in blocks():
        if language == "toml":
            assert (tmp_path / title).exists()  # written by the command before
            (tmp_path / title).write_text(text)
        for line in text.splitlines() if language == "sh" else ():
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "COLUMNS": "100"},
                capture_output=True,
                text=True,
                timeout=600,
            )
            found = EXIT.search(line)
            expected = int(found[1]) if found else 0
            assert done.returncode == expected, f"{line}\n{done.stdout}{done.stderr}"
            assert "--quiet" not in line or not done.stdout + done.stderr
            ran.append(line.split()[:2])
    assert len(ran) == 11 and ["purifier", "init"] in ran
    assert (tmp_path / "report.html").exists() and (tmp_path / "junit.xml").exists()
