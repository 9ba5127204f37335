"""A cluster for tests: one node that is this machine, so that what tests break is theirs.

Pods mount this environment from the node in place of an image of lwfed's, by volumes and claims; they run as root for
that, since a developer's folders are seldom open to others.

Which cluster is taken: the one of LWFED_TEST_KUBECONFIG, else the testbed's own; never that of KUBECONFIG, which may be
anybody's. Its API must be on the loopback, or be an address of this machine that LWFED_TEST_CLUSTER names in full, such
as https://10.210.0.1:6443.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from tests.tiny import VALUES

REPO = Path(__file__).resolve().parents[2]
TESTBED = Path(os.environ.get("TESTBED_STATE") or Path.home() / ".cache/lwfed-testbed")
LOOPBACK = "127.0.0.1"
BASE_IMAGE = "docker.io/library/python:3.11-slim"
HOW_TO_GET = (
    "no cluster of this machine answers: set LWFED_TEST_KUBECONFIG to one with its API on the loopback, or on another "
    "address of this machine that LWFED_TEST_CLUSTER names too"
)
GPU = "nvidia.com/gpu"

PATIENCE = float(os.environ.get("LWFED_TEST_PATIENCE") or 1)
"""By how much longer than on an idle machine is waited: on a busy one these tests take several times as long."""

T = TypeVar("T")


@dataclass(frozen=True)
class Bed:
    """A namespace of its own in the cluster.

    Attributes:
        namespace: Its name.
        kubeconfig: How to reach the cluster.
        kubectl: The program.
        address: This machine, as pods reach it.
        env: Environment of pods that find the store.
    """

    namespace: str
    kubeconfig: Path
    kubectl: str
    address: str = LOOPBACK
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """Calls kubectl in the namespace; returns what it prints."""
        ended = subprocess.run(
            [self.kubectl, "--kubeconfig", str(self.kubeconfig), "-n", self.namespace, *arguments],
            input=text, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if check and ended.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {ended.stderr.strip()}")
        return ended.stdout

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Makes objects."""
        self.run("apply", "-f", "-", text=yaml.safe_dump_all(manifests))

    def secret(self, name: str, values: Mapping[str, str]) -> None:
        """Makes a Secret."""
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(values)})

    def get(self, what: str, *arguments: str) -> list[dict[str, Any]]:
        """Returns objects."""
        found: list[dict[str, Any]] = json.loads(self.run("get", what, *arguments, "-o", "json"))["items"]
        return found

    def jobs(self, selector: str = "app.kubernetes.io/managed-by=lwfed") -> list[dict[str, Any]]:
        """Returns Jobs."""
        return self.get("jobs", "-l", selector)

    def pods(self, selector: str = "app.kubernetes.io/managed-by=lwfed") -> list[dict[str, Any]]:
        """Returns pods."""
        return self.get("pods", "-l", selector)

    def running_pod(self, selector: str, *, within_s: float = 120) -> str:
        """Waits for a pod whose container runs; returns its name."""

        def look() -> str | None:
            for pod in self.pods(selector):
                states = [status["state"] for status in pod["status"].get("containerStatuses") or ()]
                if pod["metadata"].get("deletionTimestamp") is None and any("running" in state for state in states):
                    return str(pod["metadata"]["name"])
            return None

        return until(look, within_s=within_s, what=f"a running pod with {selector}")

    def kill_process(self, pod: str) -> None:
        """Sends SIGKILL to a pod's process."""
        found = json.loads(self.run("get", "pod", pod, "-o", "json"))
        container = found["status"]["containerStatuses"][0]["containerID"].partition("://")[2]
        containerd = os.environ.get("CONTAINERD_ADDRESS") or str(TESTBED / "run/containerd.sock")
        ctr = ["ctr", "-a", containerd, "-n", "k8s.io"]
        subprocess.run([*ctr, "tasks", "kill", "-s", "SIGKILL", container], check=True, capture_output=True)

    def spec(self, uri: str, *overrides: str, kubernetes: Mapping[str, Any] | None = None) -> RunSpec:
        """Returns the tiny experiment as this namespace runs it."""
        settings = {
            "namespace": self.namespace,
            "image": BASE_IMAGE,
            "image_pull_policy": "Never",
            "run_as_user": 0,
            "heartbeat_s": 2,
            "heartbeat_timeout_s": 30,
            "env": {**environment(), **self.env},
            "server": pool("server"),
            "pools": [pool("clients")],
            **(kubernetes or {}),
        }
        values = {
            **VALUES, "store": {"uri": uri}, "launch": {"kind": "kubernetes", "device": "cpu"}, "kubernetes": settings
        }  # fmt: skip
        return build_spec(values, overrides=overrides)


def environment() -> dict[str, str]:
    """Returns what lets a pod run this very environment."""
    return {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def places() -> dict[str, Path]:
    """Returns the folders of this environment, by the name of their claim."""
    wanted = {"repo": REPO, "env": Path(sys.prefix), "python": Path(os.path.realpath(sys.executable)).parents[1]}
    return {name: path for name, path in wanted.items() if name == "repo" or REPO not in path.parents}


def folders() -> list[dict[str, Any]]:
    """Returns the folders of this environment as volumes of a pool."""
    return [{"name": name, "mount_path": str(path), "claim": name} for name, path in places().items()]


def volumes_and_claims(namespace: str) -> Iterator[dict[str, Any]]:
    """Yields what lets pods of a namespace mount the folders of this environment from the node."""
    for name, path in places().items():
        common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
        size = {"storage": "1Gi"}
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}", "labels": {"lwfed/test": namespace}},
            "spec": {
                **common, "capacity": size, "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": str(path)},
                "claimRef": {"namespace": namespace, "name": name},
            },
        }  # fmt: skip
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**common, "resources": {"requests": size}, "volumeName": f"{namespace}-{name}"},
        }


def pool(name: str, **settings: Any) -> dict[str, Any]:
    """Returns a pool with this environment in its pods."""
    return {"name": name, "cpu": "50m", "volumes": folders(), **settings}


def until(look: Callable[[], T | None], *, within_s: float, what: str) -> T:
    """Waits until something is there."""
    ends_at = time.monotonic() + within_s * PATIENCE
    while time.monotonic() < ends_at:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {within_s:g} s")


def address_of(server: str, *, named: str | None) -> str | None:
    """Returns the address of this machine as pods of a cluster reach it; None where the cluster is not for tests.

    Args:
        server: The API's address, as the kubeconfig has it.
        named: The address that LWFED_TEST_CLUSTER names.
    """
    host = urlsplit(server).hostname or ""
    if host == "localhost" or re.fullmatch(r"127(\.[0-9]+){3}", host):
        return LOOPBACK
    return host if server == named and _is_of_this_machine(host) else None


def _is_of_this_machine(host: str) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind((host, 0))
        except OSError:
            return False
    return True


def find_cluster() -> Bed | None:
    """Finds a cluster that is for tests, and kubectl; None where there is none."""
    named = os.environ.get("LWFED_TEST_KUBECONFIG")
    path = Path(named) if named else TESTBED / "pki/admin.kubeconfig"
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(TESTBED / "bin"))
    if not path.is_file() or kubectl is None:
        return None
    clusters = yaml.safe_load(path.read_text(encoding="utf-8"))["clusters"]
    told = os.environ.get("LWFED_TEST_CLUSTER")
    addresses = {address_of(entry["cluster"]["server"], named=told) for entry in clusters}
    address = addresses.pop() if len(addresses) == 1 else None
    if address is None:
        return None
    asked = subprocess.run(
        [kubectl, "--kubeconfig", str(path), "get", "--raw", "/readyz", "--request-timeout=5s"], capture_output=True
    )
    return None if asked.returncode else Bed(namespace="default", kubeconfig=path, kubectl=kubectl, address=address)


@contextmanager
def namespace(name: str) -> Iterator[Bed | None]:
    """Makes a namespace for a while; yields None where there is no cluster."""
    found = find_cluster()
    if found is None:
        yield None
        return
    bed = replace(found, namespace=name)
    bed.run("create", "namespace", name)
    until(lambda: bed.run("get", "serviceaccount", "default", check=False), within_s=30, what="the default account")
    bed.apply(*volumes_and_claims(name))
    try:
        yield bed
    finally:
        bed.run("delete", "namespace", name, "--wait=false")
        bed.run("delete", "persistentvolume", "-l", f"lwfed/test={name}", "--wait=false")
