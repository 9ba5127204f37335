"""Runs `lwfed` again and again in forks of one process, each killed with -9 before some change of the store.

    python killer.py SEED -- run SPEC --run-id ID

The imports are done once, before the first fork. A fork counts the files that it opens to write, moves, links or
removes in the store, told by Python's audit events before each, and sends itself SIGKILL before one whose number is
drawn by the seed. Prints a JSON line for each fork: its exit status, and before which change it was killed.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
from pathlib import Path

OUTPUT = "last.txt"
"""The file that holds what the last fork said."""
LOADED = (
    "timm", "transformers.models.distilbert.modeling_distilbert", "lwfed.cli.main", "lwfed.launch.in_process",
    "lwfed.steps.experiment", "lwfed.steps.finish", "lwfed.round.initial", "lwfed.steps.prepare",
)  # fmt: skip
CHANGES = {"os.rename", "os.link", "os.remove"}
SHORT, LONG = (3, 25), (70, 100)
"""How many changes a fork may do; every fourth may do enough to write the report, which is never half done."""


def main() -> None:
    split = sys.argv.index("--")
    arguments = sys.argv[split + 1 :]
    for name in LOADED:
        importlib.import_module(name)
    draw = random.Random(int(sys.argv[1]))
    status, number = -1, 0
    while status != 0:
        number += 1
        allowed = draw.randint(*(SHORT if number % 4 else LONG))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _run(arguments, allowed=allowed, tell=writer)
        os.close(writer)
        with os.fdopen(reader) as told:
            before = told.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "allowed": allowed, "before": before}), flush=True)
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"a fork ended with {status}")


def _run(arguments: list[str], *, allowed: int, tell: int) -> None:
    store = str(Path("lwfed-runs").absolute())
    done = 0

    def watch(event: str, values: tuple[object, ...]) -> None:
        nonlocal done
        if event not in CHANGES and not (event == "open" and _writes(values)):
            return
        path = values[1 if event in ("os.rename", "os.link") else 0]
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(store):
            done += 1
            if done > allowed:
                os.write(tell, f"{event} {os.path.relpath(path, store)}".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = ["lwfed", *arguments]
    with Path(OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from lwfed.cli.main import main as command

    try:
        command()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    os._exit(0)


def _writes(values: tuple[object, ...]) -> bool:
    return isinstance(values[2], int) and bool(values[2] & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    main()
