"""Writes the requirements of an image, so that its layers are rebuilt only when the requirements change.

usage: needs.py PYPROJECT CONSTRAINTS FOLDER [EXTRA...]

It derives four files from pyproject.toml and the constraints: `torch.txt` with `torch-constraints.txt` (PyTorch and its
dependencies), and `requirements.txt` with `constraints.txt` (all dependencies, including those of the extras). Changes
of a linter's settings or of a test tool's version do not affect them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TORCH = ("torch", "torchvision")
WITH_TORCH = re.compile(
    r"nvidia-.*|cuda-.*|triton|torch|torchvision|"
    r"filelock|fsspec|jinja2|markupsafe|mpmath|networkx|numpy|pillow|setuptools|sympy|typing-extensions"
)
"""PyTorch and its dependencies, by the names of their distributions."""


def name_of(requirement: str) -> str:
    """Returns the distribution's normalised name, as package indexes compare it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def needs(project: Mapping[str, Any], constraints: Iterable[str], *, extras: Iterable[str]) -> dict[str, list[str]]:
    """Returns the lines of each file by its name.

    Args:
        project: The table `project` of pyproject.toml.
        constraints: Lines `name==version`; comments and empty lines are skipped.
        extras: The image's optional dependencies.
    """
    wanted = [*project["dependencies"]]
    unwanted: set[str] = set()
    for extra, lines in project.get("optional-dependencies", {}).items():
        if extra in set(extras):
            wanted += lines
        else:
            unwanted |= {name_of(line) for line in lines}
    pins = sorted(line.strip() for line in constraints if name_of(line.strip()))
    chosen = {name_of(line) for line in wanted}
    return {
        "torch.txt": [line for line in wanted if name_of(line) in TORCH],
        "torch-constraints.txt": [pin for pin in pins if WITH_TORCH.fullmatch(name_of(pin))],
        "requirements.txt": wanted,
        "constraints.txt": [pin for pin in pins if name_of(pin) in chosen or name_of(pin) not in unwanted],
    }


def main(pyproject: str, constraints: str, folder: str, *extras: str) -> None:
    """Writes the files into `folder`."""
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    pins = Path(constraints).read_text(encoding="utf-8").splitlines()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in needs(project, pins, extras=extras).items():
        Path(folder, name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
