"""Specs for a cluster, and compiled pipelines as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lwfed.spec.load import build_spec, load_spec
from lwfed.spec.run import RunSpec
from pipelines.compile import Compiled, compile_pipeline
from pipelines.stages import Work
from tests.tiny import VALUES

IMAGE = "registry.example/lwfed@sha256:" + "0" * 64
CLUSTER = (
    f"kubernetes.image={IMAGE}",
    "kubernetes.secret=lwfed-store",
    "kubernetes.env={AWS_ENDPOINT_URL_S3: 'http://minio:9000'}",
    "store.uri=s3://lwfed/runs",
)


def cluster_spec(*overrides: str) -> RunSpec:
    """The tiny experiment, on a cluster."""
    return build_spec(VALUES, overrides=[*CLUSTER, *overrides])


def paper_spec(*overrides: str) -> RunSpec:
    """The paper's schedule: six stages of 15 rounds."""
    return load_spec("coco-layerwise", overrides=[*CLUSTER, *overrides])


def compiled(spec: RunSpec, folder: Path, **options: Any) -> tuple[Compiled, dict[str, Any], dict[str, Any]]:
    """Compiles; returns what was compiled, the pipeline, and its settings of Kubernetes by executor."""
    done = compile_pipeline(Work(spec, **options), folder / "pipeline.yaml")
    pipeline, platform = yaml.safe_load_all(done.path.read_text(encoding="utf-8"))
    return done, pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks_of(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives all tasks of a compiled pipeline, those of the exit handler's group too."""
    parts = [pipeline["root"], *pipeline["components"].values()]
    return {name: task for part in parts if "dag" in part for name, task in part["dag"]["tasks"].items()}


def containers_of(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives the containers of all tasks that have one, by the task's name."""
    executors = pipeline["deploymentSpec"]["executors"]
    return {
        label.removeprefix("exec-"): executor["container"]
        for label, executor in executors.items()
        if "container" in executor
    }
