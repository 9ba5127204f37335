"""What kustomize makes of `k8s/`, written down; `make k8s-golden` writes it again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
HERE = Path(__file__).parent
GOLDEN = ROOT / "tests/golden/k8s"
SOURCES = GOLDEN / "sources.sha256"

OVERLAYS = tuple(sorted(folder.name for folder in (K8S / "overlays").iterdir() if folder.is_dir()))
FOLDERS = {
    **{name: K8S / "overlays" / name for name in OVERLAYS},
    "everything": HERE / "everything",
    "kfp": HERE / "kfp",
    "kueue-cluster": K8S / "components/kueue/cluster",
    "priority-classes": K8S / "components/priority-classes",
}
"""Name of what is written down -> its kustomization."""
LWFED = (*OVERLAYS, "everything")
"""Those that have lwfed's base in them."""

Object = dict[str, Any]


def kustomize() -> list[str] | None:
    """Returns the command that renders; None where there is none."""
    state = os.environ.get("TESTBED_STATE") or str(Path.home() / ".cache/lwfed-testbed")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), f"{state}/bin"])
    kubectl = shutil.which("kubectl", path=path)
    if kubectl:
        return [kubectl, "kustomize"]
    alone = shutil.which("kustomize", path=path)
    return [alone, "build"] if alone else None


def render(name: str, command: list[str]) -> str:
    """Renders one of `FOLDERS`."""
    done = subprocess.run([*command, str(FOLDERS[name])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of what will go
    return done.stdout


def objects(text: str) -> list[Object]:
    """Returns the objects of a rendered text."""
    return [found for found in yaml.safe_load_all(text) if found]


def golden(name: str) -> list[Object]:
    """Returns the objects that are written down."""
    return objects((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8"))


def sources_digest() -> str:
    """Returns the digest of all that kustomize reads."""
    found = sorted(path for folder in (K8S, HERE) for path in folder.rglob("*.yaml"))
    total = hashlib.sha256()
    for path in found:
        total.update(f"{path.relative_to(ROOT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _write() -> None:
    command = kustomize()
    if command is None:
        sys.exit("neither kubectl nor kustomize is here: install one")
    GOLDEN.mkdir(exist_ok=True)
    for name in FOLDERS:
        (GOLDEN / f"{name}.yaml").write_text(render(name, command), encoding="utf-8")
    SOURCES.write_text(sources_digest() + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
