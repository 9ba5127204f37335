"""Laws of the code's version: all code that decides a number is part of it, by its meaning, and nothing else is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lwfed
from lwfed.run.version import deciding_files, outline, version_of

PACKAGE = Path(lwfed.__file__).parent
SILENT = {
    "__init__.py",
    "cpus.py",  # how many threads work, on which no bit depends
    "environment.py",  # what a platform sets
    "formats.py",  # how people read numbers; the headline that a gate watches is in its plan
    "steps/__init__.py",
}
"""Modules that a stage imports and that decide no number of it."""
SILENT_FOLDERS = (
    "store/",
    "spec/",
    "run/",
    "catalog/",
)  # bytes are checked by digests; values are part of the plan; records, tasks; what it says is part of the plan


def test_every_module_that_a_stage_imports_is_part_of_the_version() -> None:
    program = (
        "import json, sys, lwfed.round.train_stage, lwfed.round.train_client, lwfed.round.aggregate_round\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith('lwfed') and m.__file__]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {Path(file).relative_to(PACKAGE).as_posix() for file in json.loads(ended.stdout)}
    forgotten = {name for name in imported - SILENT if not name.startswith(SILENT_FOLDERS)}
    forgotten -= {path for path, _ in deciding_files(PACKAGE)}
    assert not forgotten, "they decide numbers, or belong into SILENT with a reason"


def test_an_outline_has_what_the_code_does_and_not_how_it_reads() -> None:
    plain = "N = 3\ndef f(x):\n    return x + 1\n"
    worded = '"""Module."""\nN = 3  # three\n"""How many."""\ndef f(\n    x,\n):\n    """Adds."""\n    return (x + 1)\n'
    assert outline(worded) == outline(plain)
    assert outline(plain.replace("1", "2")) != outline(plain)
    assert outline(plain.replace("1", "1.0")) != outline(plain)
    assert outline(plain.replace("x + 1", "'x + 1'")) != outline(plain)


def _append(path: str, line: str) -> Callable[[Path], object]:
    return lambda package: (package / path).write_text((package / path).read_text() + line)


def _create(path: str) -> Callable[[Path], object]:
    return lambda package: (package / path).write_text("ANSWER = 42\n")


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (_append("federated/server.py", '\n# A remark.\n"""And a text."""\n'), False),
        (_append("federated/server.py", "\nX = 1\n"), True),
        (_append("models/encoders/vit.py", "\nX = 1\n"), True),
        (_append("models/encoders/ast.py", "\nX = 1\n"), False),
        (_append("data/sources/coco.py", "\nX = 1\n"), False),
        (_append("data/sources/shapes.py", "\nX = 1\n"), True),
        (_append("data/makers/tuxpaint.py", "\nX = 1\n"), False),
        (_append("report/page.py", "\nX = 1\n"), False),
        (_create("models/encoders/another.py"), False),
        (_create("data/sources/another.py"), False),
        (_append("models/fusions/concat.py", "\nX = 1\n"), False),
        (_create("models/fusions/another.py"), False),
        (_create("models/another.py"), True),
    ],
)
def test_only_a_change_of_meaning_in_code_that_a_run_uses_changes_its_version(
    tmp_path: Path, change: Callable[[Path], object], counts: bool
) -> None:
    package = tmp_path / "lwfed"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = _version(tmp_path)
    assert len(before) == 64 and int(before, 16)
    assert _version(tmp_path) == before
    change(package)
    assert (_version(tmp_path) != before) is counts


def _version(folder: Path) -> str:
    return version_of(folder / "lwfed", chosen=frozenset({"vit", "distilbert", "shapes"}))
