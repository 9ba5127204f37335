"""The experiment beside each overlay fits what the overlay makes, and what `lwfed store init` makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lwfed.cli.enrolment import secret_name
from lwfed.spec.kubernetes import PoolSpec
from lwfed.spec.load import build_spec, load_spec
from lwfed.spec.run import RunSpec
from lwfed.types.clients import client_ids
from pipelines.compile import compile_pipeline
from pipelines.stages import Work
from tests.unit.k8s.rendered import K8S, OVERLAYS, golden


def experiment(name: str) -> RunSpec:
    return load_spec(str(K8S / "overlays" / name / "experiment.yaml"))


def pools(spec: RunSpec) -> list[PoolSpec]:
    return [*spec.kubernetes.pools, spec.kubernetes.server]


def names(name: str, kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in golden(name) if one["kind"] == kind}


@pytest.mark.parametrize("name", OVERLAYS)
def test_experiment_names_what_is_there(name: str) -> None:
    spec = experiment(name)
    settings, found = spec.kubernetes, golden(name)
    assert spec.launch.kind == "kubernetes"
    assert {one["metadata"]["namespace"] for one in found if one["kind"] == "ServiceAccount"} == {settings.namespace}
    assert settings.service_account in names(name, "ServiceAccount")
    classes = {settings.priority_class, *(pool.priority_class for pool in pools(spec))} - {None}
    assert classes <= names("priority-classes", "PriorityClass")
    host = str(spec.tracking.uri).partition("://")[2].partition(":")[0]
    assert host in names(name, "Service") or host.endswith(".example.com")


@pytest.mark.parametrize("name", OVERLAYS)
def test_experiment_uses_the_secrets_of_store_init(name: str) -> None:
    spec = experiment(name)
    ids = client_ids(spec.federation.num_clients)
    assert spec.kubernetes.secret == secret_name("server")
    for pool in spec.kubernetes.pools:
        if pool.secret is not None:
            assert pool.clients == tuple(one for one in ids if secret_name(one) == pool.secret), pool.name
    assert {spec.kubernetes.pool_of(client).name for client in ids} == {pool.name for pool in spec.kubernetes.pools}


@pytest.mark.parametrize("name", OVERLAYS)
def test_experiment_fits_the_quotas(name: str) -> None:
    spec = experiment(name)
    assert all(pool.memory and pool.cpu for pool in pools(spec))
    hard = {
        key: value
        for one in golden(name)
        if one["kind"] == "ResourceQuota"
        for key, value in one["spec"]["hard"].items()
    }
    at_once = {pool.name: pool.parallel or len(pool.clients) for pool in spec.kubernetes.pools}
    gpus = sum(pool.gpus * at_once[pool.name] for pool in spec.kubernetes.pools)
    assert gpus <= int(hard.get("requests.nvidia.com/gpu", 0))
    assert gpus == 0 or all(pool.tolerations for pool in pools(spec) if pool.gpus)


@pytest.mark.parametrize("name", OVERLAYS)
def test_experiment_asks_for_a_user_and_a_group_where_the_cluster_has_none_of_its_own(name: str) -> None:
    settings = experiment(name).kubernetes
    assert settings.run_as_user is None
    assert settings.fs_group == (None if name == "openshift" else 65532)


OTHERS = 0.95 + 0.674
"""CPUs that others ask for on a node of kind: its own pods, and those of Kubeflow Pipelines 2.17, platform-agnostic."""


def cpus(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_the_trial_fits_a_node_of_two_cpus() -> None:
    settings = experiment("kind").kubernetes
    servers = sum(
        cpus(container["resources"]["requests"]["cpu"])
        for one in golden("kind")
        if one["kind"] in ("Deployment", "StatefulSet")
        for container in one["spec"]["template"]["spec"]["containers"]
    )
    clients = sum(cpus(pool.cpu or "1") for pool in settings.pools)
    work = cpus(settings.coordinator.cpu) + max(clients, cpus(settings.server.cpu or "1"))
    assert servers + work + OTHERS <= 1.95


@pytest.mark.parametrize("name", OVERLAYS)
def test_experiment_compiles(name: str, tmp_path: Path) -> None:
    done = compile_pipeline(Work(experiment(name)), tmp_path / "pipeline.yaml")
    assert experiment(name).kubernetes.image in done.path.read_text(encoding="utf-8")


def test_pools_with_gpus_are_a_part_of_a_spec() -> None:
    values = yaml.safe_load((K8S / "components/gpu/pools.yaml").read_text(encoding="utf-8"))
    (pool,) = build_spec(values, overrides=["kubernetes.image=lwfed:1"]).kubernetes.pools
    assert pool.gpus == 1
