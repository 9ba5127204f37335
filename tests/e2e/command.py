"""Runs the real command in processes of its own, on specs so small that starting a process is what takes time."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

IMAGE = {
    "family": "vit",
    "arch": "vit_tiny_patch16_224",
    "blocks_per_stage": 1,
    "config": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
}
TEXT = {
    "family": "distilbert",
    "blocks_per_stage": 1,
    "max_tokens": 64,
    "config": {
        "vocab_size": 384, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64,
        "dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip
AUDIO = {
    "family": "ast",
    "blocks_per_stage": 1,
    "config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "num_mel_bins": 32, "max_length": 72,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "name": "tiny",
    "strategy": "layerwise",
    "stages": {"rounds": [2, 1]},
    "data": {
        "source": "shapes", "workers": 0, "augment": False, "shapes": {"train": 24, "test": 8, "image_size": 16},
    },
    "model": {
        "encoders": {"image": IMAGE, "text": TEXT},
        "projection": {"hidden": 16, "out": 8, "dropout": 0.0},
        "objective": {"kind": "contrastive", "temperature": 0.07},
    },
    "training": {"local_epochs": 1, "batch_size": 8, "learning_rate": 3.125e-4},
    "federation": {"num_clients": 2},
    "tracking": {"uri": None},
}  # fmt: skip
"""Two stages, three rounds, two clients of twelve scenes; no dropout; no MLflow."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        value = json.loads(self.out.strip().splitlines()[-1])
        assert isinstance(value, dict)
        return value

    @property
    def errors(self) -> list[str]:
        """Lines of standard error that tell of an error."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def write_spec(folder: Path, *, name: str = "spec.yaml", **changes: Any) -> Path:
    """Writes the tiny spec with some keys changed: `training__batch_size=4`, or whole sections."""
    values = copy.deepcopy(TINY)
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    path_of_spec = folder / name
    path_of_spec.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path_of_spec


def environment(**extra: str) -> dict[str, str]:
    """Returns the environment of a command: ours, on one thread, without the network."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LWFED_"))}
    if "LWFED_CACHE" in os.environ:
        ours["LWFED_CACHE"] = os.environ["LWFED_CACHE"]
    return {**ours, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def start(*arguments: str | Path, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Starts `lwfed` with some arguments in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "lwfed", *map(str, arguments)],
        cwd=cwd, env=environment(**extra), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait(process: subprocess.Popen[str], *, timeout: float = 240) -> Ended:
    """Waits for a command and gives what it said."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} takes more than {timeout} s\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def lwfed(*arguments: str | Path, cwd: Path, **extra: str) -> Ended:
    """Runs a command to its end."""
    return wait(start(*arguments, cwd=cwd, **extra))


def succeed(*arguments: str | Path, cwd: Path, **extra: str) -> Ended:
    """Runs a command that must succeed."""
    ended = lwfed(*arguments, cwd=cwd, **extra)
    assert ended.code == 0, ended.out + ended.err
    return ended


def together(*calls: Callable[[], Ended]) -> list[Ended]:
    """Runs commands two at a time; they must not share a store."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda call: call(), calls))


def until(
    happened: Callable[[], Any], *, process: subprocess.Popen[str], timeout: float = 120, every: float = 0.001
) -> None:
    """Waits until something happened while a command runs."""
    ends_at = time.monotonic() + timeout
    while not happened():
        assert process.poll() is None, "the command ended before it happened:\n" + "".join(process.communicate())
        assert time.monotonic() < ends_at, "it did not happen"
        time.sleep(every)


def committed(store: Path, pattern: str) -> list[Path]:
    """Returns the files of a store that match a pattern below stages/<key>/."""
    return sorted(store.glob(f"stages/*/{pattern}"))


def processes_of(folder: Path) -> list[psutil.Process]:
    """Returns the processes that work in a folder."""
    return [process for process in psutil.process_iter() if _works_in(process, folder)]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
    except (psutil.Error, OSError):
        return False


def contents(store: Path) -> dict[str, bytes]:
    """Returns every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in _files(store)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
