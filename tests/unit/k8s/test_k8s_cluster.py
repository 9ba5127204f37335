"""A cluster takes the manifests, and its service accounts may do what they must and no more."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from tests.unit.k8s.rendered import GOLDEN, LWFED, kustomize
from tests.unit.k8s.test_role import Right, asked

pytestmark = pytest.mark.cluster

FORBIDDEN: set[Right] = {
    ("", "pods", "create"), ("", "pods", "delete"), ("", "pods/exec", "create"), ("", "secrets", "get"),
    ("", "secrets", "list"), ("", "configmaps", "get"), ("", "events", "create"), ("batch", "jobs", "patch"),
    ("batch", "jobs", "update"), ("batch", "jobs", "deletecollection"), ("batch", "cronjobs", "create"),
    ("rbac.authorization.k8s.io", "roles", "create"),
}  # fmt: skip


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    command = kustomize()
    assert command is not None
    done = subprocess.run([command[0], *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    command = kustomize()
    if not os.environ.get("KUBECONFIG") or command is None or not command[0].endswith("kubectl"):
        pytest.skip("no cluster: KUBECONFIG is not set, or kubectl is not here")
    if kubectl("get", "--raw", "/readyz", "--request-timeout=5s", check=False) != "ok":
        pytest.skip("the cluster of KUBECONFIG does not answer")
    name = f"lwfed-k8s-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def manifests(overlay: str, namespace: str) -> str:
    """Returns what an overlay makes, in another namespace; without kinds that the cluster may not have."""
    text = (GOLDEN / f"{overlay}.yaml").read_text(encoding="utf-8")
    for own in ("lwfed", "kubeflow"):
        text = text.replace(f"  namespace: {own}\n", f"  namespace: {namespace}\n")
    return "---\n".join(one for one in text.split("---\n") if "kueue.x-k8s.io" not in one)


@pytest.mark.parametrize("overlay", LWFED)
def test_server_takes_the_manifests(overlay: str, namespace: str) -> None:
    said = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=manifests(overlay, namespace))
    assert "rolebinding.rbac.authorization.k8s.io/lwfed-coordinator created (server dry run)" in said


def test_rights_in_a_cluster(namespace: str) -> None:
    rights = [
        one for one in manifests("kind", namespace).split("---\n") if "kind: Role" in one or "kind: Service" in one
    ]
    kubectl("apply", "-f", "-", text="---\n".join(rights))

    def may(account: str, right: Right) -> bool:
        group, resource, verb = right
        kind, _, sub = resource.partition("/")
        full = f"{kind}.{group}" if group else kind
        extra = [f"--subresource={sub}"] if sub else []
        who = f"--as=system:serviceaccount:{namespace}:{account}"
        return kubectl("auth", "can-i", verb, full, *extra, who, "-n", namespace, check=False).strip() == "yes"

    wanted = asked()
    for account in ("lwfed-coordinator", "pipeline-runner"):
        assert {right for right in wanted if not may(account, right)} == set()
        assert {right for right in FORBIDDEN if may(account, right)} == set()
    assert {right for right in wanted | FORBIDDEN if may("lwfed-worker", right)} == set()
