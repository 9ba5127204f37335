"""A program in an interpreter of its own, which tells what it has loaded by its end, and what that took."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from lwfed import environment

COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
"""torch's compiler, which takes as long to load as torch itself."""
LIBRARIES = (
    "torchvision", "timm", "transformers", "scipy", "sklearn", "pandas", "matplotlib", "matplotlib.pyplot", "mlflow",
    "kfp",
)  # fmt: skip
HEAVY = ("torch", "numpy", *COMPILER, *LIBRARIES, "botocore", "kubernetes")
STEP = """
from lwfed.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""
"""The `lwfed` command."""
_PROGRAM = """
import json, sys
{body}
print()
print(json.dumps([len(sys.modules), [name for name in {names!r} if name in sys.modules]]))
"""


@dataclass(frozen=True, slots=True)
class Start:
    """How a program went.

    Attributes:
        loaded: Which modules of `HEAVY` it has loaded by its end.
        modules: How many modules in all.
        cpu_s: Seconds of a CPU, of the whole process.
    """

    loaded: frozenset[str]
    modules: int
    cpu_s: float


def run(body: str, *arguments: str, stdin: str = "") -> Start:
    """Runs a program.

    Args:
        body: Its code.
        arguments: Its `sys.argv[1:]`.
        stdin: What it reads.
    """
    before = _cpu_s()
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body=body, names=HEAVY), *arguments],
        input=stdin, capture_output=True, text=True, check=False, env=environment.child_environment(LWFED_DEBUG="1"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    modules, loaded = json.loads(ended.stdout.splitlines()[-1])
    return Start(loaded=frozenset(loaded), modules=modules, cpu_s=_cpu_s() - before)


def run_step(name: str, task: Any) -> Start:
    """Runs `lwfed step` on a task, as a pod does."""
    return run(STEP, "step", name, "--task", "-", "--json", stdin=task.model_dump_json())


def _cpu_s() -> float:
    """Seconds of a CPU that ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
