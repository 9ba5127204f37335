"""No compiled pipeline of ours has what a real Kubeflow Pipelines stumbles over; and each rule finds its trap."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kfp import compiler, dsl

from tests.components import rules
from tests.components.compiled import cluster_spec, compiled, paper_spec


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (cluster_spec(), {}),
        (cluster_spec("kubernetes.coordinator={cpu: '2', memory: 3Gi, node_selector: {pool: small}}"), {}),
        (cluster_spec("strategy=end_to_end"), {}),
        (paper_spec(), {}),
        (paper_spec("federation.num_clients=1000"), {"fresh": True}),
        (paper_spec(), {"stages": [3, 4, 5, 6], "parent": ("base", 3)}),
    ],
)
def test_our_pipelines_keep_every_rule(spec: Any, options: dict[str, Any], tmp_path: Path) -> None:
    _, pipeline, _ = compiled(spec, tmp_path, **options)
    assert rules.broken(pipeline) == []


@dsl.component(base_image="python:3.11")
def source() -> NamedTuple("Outputs", [("uri", str), ("count", int)]):  # type: ignore[valid-type]
    return "s3://somewhere", 1


@dsl.component(base_image="python:3.11")
def sink(text: str = "") -> None:
    pass


@dsl.component(base_image="python:3.11")
def unsafe(n: str) -> None:
    pass


def compiled_from(body: Callable[[], None], folder: Path) -> dict[str, Any]:
    compiler.Compiler().compile(dsl.pipeline(name="probe")(body), str(folder / "probe.yaml"))
    pipeline: dict[str, Any] = next(yaml.safe_load_all((folder / "probe.yaml").read_text(encoding="utf-8")))
    return pipeline


def imports_an_output() -> None:
    dsl.importer(artifact_uri=source().outputs["uri"], artifact_class=dsl.Model)


def imports_an_output_in_a_group() -> None:
    with dsl.ExitHandler(sink()):
        dsl.importer(artifact_uri=source().outputs["uri"], artifact_class=dsl.Model)


def ignores_a_failure() -> None:
    sink(text="second").after(sink(text="first")).ignore_upstream_failure()


def loops() -> None:
    with dsl.ParallelFor(["a", "b"]) as item:
        sink(text=item)


def retries() -> None:
    sink().set_retry(3)


def names_badly() -> None:
    unsafe(n="1")


def takes_a_resource() -> None:
    sink().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(source().outputs["count"])


def says_too_much() -> None:
    sink(text="x" * rules.ARGUMENT_BYTES)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (imports_an_output, rules.importers),
        (imports_an_output_in_a_group, rules.importers),
        (ignores_a_failure, rules.endings),
        (loops, rules.loops),
        (retries, rules.retries),
        (names_badly, rules.names),
        (takes_a_resource, rules.resources),
        (says_too_much, rules.sizes),
    ],
)
def test_each_rule_finds_what_it_looks_for(body: Callable[[], None], rule: Any, tmp_path: Path) -> None:
    pipeline = compiled_from(body, tmp_path)
    assert list(rule(pipeline))
    assert rules.broken(pipeline)


def test_an_importer_of_a_constant_is_fine(tmp_path: Path) -> None:
    def body() -> None:
        dsl.importer(artifact_uri="s3://bucket/model", artifact_class=dsl.Model)

    assert list(rules.importers(compiled_from(body, tmp_path))) == []
