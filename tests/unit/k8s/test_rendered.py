"""The rendered manifests are those that are written down, and valid for Kubernetes."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.unit.k8s.rendered import FOLDERS, GOLDEN, SOURCES, golden, kustomize, objects, render, sources_digest

VERSION = "1.34"
CUSTOM = {"kueue.x-k8s.io/v1beta1"}
"""Kinds of other makers, which no schema of Kubernetes knows."""


def test_golden_files_are_of_these_sources() -> None:
    assert SOURCES.read_text(encoding="utf-8").strip() == sources_digest(), "k8s/ has changed: run `make k8s-golden`"


def test_every_kustomization_is_written_down_and_nothing_else() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_rendered_as_written_down(name: str) -> None:
    command = kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize is here")
    assert objects(render(name, command)) == golden(name), "run `make k8s-golden`"


@pytest.mark.parametrize("name", FOLDERS)
def test_valid_for_kubernetes(name: str) -> None:
    for found in golden(name):
        if found["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(found, VERSION, strict=True)


@pytest.mark.parametrize("name", FOLDERS)
def test_no_object_stands_twice(name: str) -> None:
    keys = [
        (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in golden(name)
    ]
    assert len(keys) == len(set(keys))


def test_schemas_refuse_what_is_wrong() -> None:
    (wrong,) = [one for one in golden("kind") if one["kind"] == "Deployment"]
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)
