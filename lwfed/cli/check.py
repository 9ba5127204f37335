"""`lwfed doctor`: whether this machine can run lwfed, and with which versions and devices."""

from __future__ import annotations

import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import typer
from rich.table import Table

from lwfed import __version__, cpus, environment
from lwfed.cli.options import DEFAULT_STORE, Json, StoreUri
from lwfed.drive.console import make_console, print_json
from lwfed.formats import bytes_text
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "safetensors", "mlflow", "pydantic", "typer", "numpy")
LOW_DISK_BYTES = 2_000_000_000

Finding = tuple[str, str, str]
"""(`ok`, `warn` or `fail`; what was found; remedy)."""


def doctor(store: StoreUri = DEFAULT_STORE, as_json: Json = False) -> None:
    """Check this machine: Python, libraries, processors, memory, GPU, store, disk and MLflow."""
    findings = list(_findings(store))
    failed = any(level == "fail" for level, _, _ in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [{"level": a, "what": b, "remedy": c} for a, b, c in findings]})
    else:
        table = Table.grid(padding=(0, 2))
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for level, what, remedy in findings:
            table.add_row(f"[{colours[level]}]{level}[/]", what + (f"  -> {remedy}" if remedy else ""))
        make_console().print(table)
    if failed:
        raise typer.Exit(1)


def _findings(store: str) -> Iterator[Finding]:
    yield "ok", f"lwfed {__version__}, Python {platform.python_version()} at {sys.executable}", ""
    for name in LIBRARIES:
        try:
            yield "ok", f"{name} {metadata.version(name)}", ""
        except metadata.PackageNotFoundError:
            yield "fail", f"{name} is not installed", "pip install lwfed again"
    yield from _machine_findings()
    yield from _store_findings(store)
    yield from _mlflow_findings()


def _machine_findings() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield "ok", _cpus_text(cpus.usable(), cpus.limits()), ""
    yield "ok", f"{bytes_text(memory.total)} memory, {bytes_text(memory.available)} free", ""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            yield "ok", f"GPU {index}: {device.name}, {bytes_text(device.total_memory)}, {bf16}", ""
    else:
        yield "ok", "no GPU: clients train on the CPU in fp32", ""


def _cpus_text(usable: int, limits: Mapping[str, float]) -> str:
    """Returns how many CPUs there are, and if this process may use fewer, what limits it."""
    machine = limits["machine"]
    lower = ", ".join(f"{name} {count:g}" for name, count in limits.items() if count < machine)
    return f"{usable} CPU(s)" + (f" of the machine's {machine:g}, by {lower}" if lower else "")


def _store_findings(uri: str) -> Iterator[Finding]:
    folder = None if "://" in uri else Path(uri).expanduser().absolute()
    existed = folder is None or folder.exists()
    try:
        opened = open_store(uri)
        mark = secrets.token_hex(8)
        opened.write_ref("doctor.json", {"written": mark})
        good = opened.read_ref("doctor.json") == {"written": mark}
        opened.delete("doctor.json")
        yield ("ok", f"store {opened.uri} is writable", "") if good else ("fail", f"store {uri} loses data", "")
        if folder is not None:
            if not existed:
                shutil.rmtree(folder)
            free = shutil.disk_usage(folder if existed else folder.parent).free
            level = "ok" if free > LOW_DISK_BYTES else "warn"
            yield level, f"{bytes_text(free)} free on its disk", "" if level == "ok" else "free some space"
    except (LwfedError, OSError) as error:
        yield "fail", f"store {uri}: {error}", ""


def _mlflow_findings() -> Iterator[Finding]:
    from lwfed.drive.trackers import place_in_mlflow
    from lwfed.spec.federation import TrackingSpec
    from lwfed.tracking.mlflow.place import check_place, check_server
    from lwfed.tracking.mlflow.target import sqlite_path

    try:
        uri = place_in_mlflow(TrackingSpec()) or ""
        check_place(uri)
        path = sqlite_path(uri)
        if path is None:
            environment.lend_home()
            check_server(uri)
        state = "answers" if path is None else "exists" if path.exists() else "will be created"
        yield "ok", f"MLflow: {path or uri} {state}", ""
    except LwfedError as error:
        yield "fail", f"MLflow: {error.problem}", error.remedy
