"""The coordinator's Role has what its launcher asks of the API, and nothing more."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lwfed.launch
from lwfed.launch.kubernetes.api import Cluster
from tests.unit.k8s.rendered import LWFED, golden

PATH = re.compile(
    r"^/api(?:s/(?P<group>[^/]+))?/v1/namespaces/ns/(?P<kind>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?$"
)

Right = tuple[str, str, str]
"""API group, resource, verb."""

OF_COMMANDS = {"delete_pod", "log_lines"}
"""Methods of the cluster's API that `lwfed cancel` and its like call with their user's rights; never a coordinator."""


class Listening:
    """An API client that tells what it is asked for."""

    def __init__(self) -> None:
        self.asked: set[Right] = set()
        self.configuration = type("Configuration", (), {"host": "https://api"})()

    def call_api(self, path: str, method: str, **_: Any) -> Any:
        """Hears of a request."""
        if path != "/version":  # everybody's
            self.asked.add(right(path, method))
        return type("Answer", (), {"data": b'{"items": []}', "close": lambda self: None})()


def right(path: str, method: str) -> Right:
    """Returns the right that the API server looks for."""
    found = PATH.match(path)
    assert found, path
    verb = {
        "GET": "get" if found["name"] else "list",
        "POST": "create",
        "DELETE": "delete",
        "PATCH": "patch",
        "PUT": "update",
    }[method]
    if verb == "delete" and not found["name"]:
        verb = "deletecollection"
    return found["group"] or "", found["kind"] + (f"/{found['sub']}" if found["sub"] else ""), verb


def calls() -> Iterator[tuple[str, list[ast.expr]]]:
    """Returns all calls of methods in the launcher: their names and arguments."""
    for path in sorted(Path(str(lwfed.launch.__file__)).parent.glob("kubernetes/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.args


def resources_of(method: str) -> set[str]:
    """Returns the resources for which the launcher calls a method."""
    return {ast.literal_eval(arguments[0]) for name, arguments in calls() if name == method and arguments}


def asked() -> set[Right]:
    """Returns the rights that all methods of the cluster ask for, as the launcher uses them."""
    api = Listening()
    cluster = Cluster("ns", api=api)  # type: ignore[arg-type]
    uses = {
        "check": lambda: cluster.check(),
        "create_job": lambda: cluster.create_job({}),
        "read_job": lambda: cluster.read_job("job"),
        "delete_job": lambda: cluster.delete_job("job", uid="uid"),
        "find": lambda: [cluster.find(resource) for resource in sorted(resources_of("find"))],
        "read_pod": lambda: cluster.read_pod("pod"),
        "events_of": lambda: cluster.events_of("uid"),
        "log": lambda: cluster.log("pod", container="lwfed"),
    }
    methods = {
        name
        for name, member in inspect.getmembers(Cluster, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }
    assert methods - OF_COMMANDS == set(uses), "a method of the cluster's API is new or gone: use it here"
    assert not OF_COMMANDS & {name for name, _ in calls()}, "the launcher needs a right for it"
    for use in uses.values():
        use()
    return api.asked


def granted(rules: list[dict[str, Any]]) -> set[Right]:
    """Spells rules out."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("name", LWFED)
def test_role_is_exactly_what_the_launcher_asks_for(name: str) -> None:
    (role,) = [one for one in golden(name) if one["kind"] in ("Role", "ClusterRole")]
    assert all("resourceNames" not in rule for rule in role["rules"])
    assert granted(role["rules"]) == asked()


def test_rights_are_read_as_the_api_server_does() -> None:
    jobs = "/apis/batch/v1/namespaces/ns/jobs"
    assert right(jobs, "POST") == ("batch", "jobs", "create")
    assert right(jobs, "DELETE") == ("batch", "jobs", "deletecollection")
    assert right(jobs, "GET") == ("batch", "jobs", "list")
    assert right("/api/v1/namespaces/ns/pods/a/log", "GET") == ("", "pods/log", "get")


@pytest.mark.parametrize("name", LWFED)
def test_workers_have_no_rights(name: str) -> None:
    found = golden(name)
    (worker,) = [one for one in found if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == "lwfed-worker"]
    assert worker["automountServiceAccountToken"] is False
    bound = {subject["name"] for one in found if one["kind"] == "RoleBinding" for subject in one["subjects"]}
    assert "lwfed-coordinator" in bound and "lwfed-worker" not in bound
