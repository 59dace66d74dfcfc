"""Print a constraint for each dependency in pyproject.toml: its lowest version."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, lowest = re.fullmatch(r"([\w-]+)>=([\w.]+)(?:;.*)?", requirement.replace(" ", "")).groups()
    print(f"{name}=={lowest}")
