"""Laws of the code's version: all code that decides a number is part of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lwfed
from lwfed.steps.version import DECIDING, DECIDING_FILES, code_version

PACKAGE = Path(lwfed.__file__).parent
SILENT = {
    "lwfed/__init__.py",
    "lwfed/environment.py",  # what a platform sets
    "lwfed/steps/__init__.py",
    "lwfed/steps/tasks.py",  # where things lie
    "lwfed/steps/version.py",  # names the code
    "lwfed/steps/client_folder.py",  # removes what no run needs
    "lwfed/steps/evaluate.py",  # judges, and changes no weight
    "lwfed/steps/evaluate_client.py",
    "lwfed/steps/gap.py",  # measures
    "lwfed/steps/launcher.py",
    "lwfed/steps/measured.py",  # adds up what was measured
    "lwfed/steps/prune.py",
    "lwfed/steps/runs.py",
    "lwfed/spec/load.py",
}
"""Modules that a stage imports and that decide no number of it."""
SILENT_FOLDERS = ("lwfed/store/", "lwfed/spec/")  # bytes are checked by digests; values are part of the plan


def test_every_module_that_a_stage_imports_is_part_of_the_version() -> None:
    program = (
        "import json, sys, lwfed.steps.train_stage, lwfed.steps.train_client, lwfed.steps.aggregate_round\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith('lwfed') and m.__file__]))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {Path(file).relative_to(PACKAGE.parent).as_posix() for file in json.loads(told.stdout)}
    versioned = {f"lwfed/{name}" for name in DECIDING_FILES}
    versioned |= {path.relative_to(PACKAGE.parent).as_posix() for d in DECIDING for path in (PACKAGE / d).glob("*.py")}
    forgotten = {name for name in imported - versioned - SILENT if not name.startswith(SILENT_FOLDERS)}
    assert not forgotten, "they decide numbers, or belong into SILENT with a reason"
    assert all((PACKAGE.parent / name).is_file() for name in versioned)


def test_the_version_is_a_digest_and_stands_still() -> None:
    assert len(code_version()) == 64 and int(code_version(), 16)
    code_version.cache_clear()
    assert code_version() == code_version()
