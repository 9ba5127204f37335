"""Jobs are valid for all versions of Kubernetes we name, restricted, and fail for the right reasons."""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest

from lwfed.launch.kubernetes.manifests import (
    CONTAINER,
    HOME,
    SLACK_S,
    Call,
    JobContext,
    Work,
    job,
    pruned,
)
from lwfed.launch.kubernetes.names import TASKS_NOTE, TEMPLATE_NOTE
from lwfed.spec.load import build_spec
from lwfed.types.errors import EXIT_CODES, FINAL_CODES, CoordinatorGoneError, OutOfMemoryError, SpecError
from tests.unit.k8s.restricted import breaches

VERSIONS = ("1.29", "1.34")
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1234"}
VOLUMES = [
    {"name": "data", "mount_path": "/data", "claim": "coco"},
    {"name": "data", "mount_path": "/more", "claim": "coco", "sub_path": "more", "read_only": False},
    {"name": "settings", "mount_path": "/settings", "config_map": "settings"},
    {"name": "keys", "mount_path": "/keys", "secret": "keys"},
    {"name": "scratch", "mount_path": "/scratch", "empty_dir": "10Gi"},
    {"name": "any", "mount_path": "/any", "empty_dir": ""},
]
DISK = {"name": "disk", "mount_path": "/disk", "host_path": "/mnt/disk"}
FULL_POOL = {
    "gpus": 4,
    "cpu": "8",
    "memory": "64Gi",
    "cpu_limit": "16",
    "memory_limit": "80Gi",
    "ephemeral_storage": "50Gi",
    "shm": "8Gi",
    "node_selector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"lwfed/pool": "clients"}}}
            ]
        }
    },
    "volumes": VOLUMES,
    "secret": "silo",
    "env": {"A": "pool"},
    "image": "silo:2",
    "service_account": "silo",
    "priority_class": "low",
    "runtime_class": "nvidia",
    "parallel": 2,
}
FULL = {"image_pull_secrets": ["regcred"], "queue": "team", "run_as_user": 1000, "env": {"B": "all"}}


def made(
    pool: dict[str, Any] | None = None,
    *,
    step: str = "train-client",
    count: int = 3,
    name: str = "lwfed-1a2b3c4d-r007-train-clients-a1",
    deadline_s: float | None = 90.5,
    digest: str = "0" * 64,
    labels: dict[str, str] | None = None,
    context: JobContext | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Gives a manifest."""
    pools = [{"name": "clients", **(pool or {})}]
    spec = build_spec({"kubernetes": {"namespace": "lab", "image": "lwfed:1", "pools": pools, **values}}).kubernetes
    work = Work(
        name=name,
        call=Call(
            step=step, labels=labels or {"app.kubernetes.io/name": "lwfed", "lwfed/run": "r"}, deadline_s=deadline_s
        ),
        clients=tuple(f"client-{n:03d}" for n in range(count)),
        store="s3://bucket/prefix",
        digest=digest,
    )
    return job(work, spec.pools[0], spec, context=context or JobContext(env={"LWFED_RUN_ID": "r"}))


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod_of(manifest)["containers"]
    assert found["name"] == CONTAINER
    return dict(found)


def env_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Gives the environment; a name that stands twice is an error."""
    entries = container_of(manifest)["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), names
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


EVERYTHING: dict[str, dict[str, Any]] = {
    "least": made(),
    "most": made(FULL_POOL, context=JobContext(owner=OWNER, env={"LWFED_RUN_ID": "r"}), **FULL),
    "server": made({"memory": "4Gi"}, step="aggregate-round", count=1, deadline_s=None),
    "host path": made({"volumes": [DISK]}),
    "root": made(run_as_user=0),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", sorted(EVERYTHING))
def test_valid_for_kubernetes(which: str, version: str) -> None:
    kubernetes_validate.validate(EVERYTHING[which], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_refuse_a_wrong_field_and_a_wrong_type(version: str) -> None:
    unknown = copy.deepcopy(EVERYTHING["least"])
    container_of(unknown)["resources"]["request"] = {}
    wrong = copy.deepcopy(EVERYTHING["least"])
    wrong["spec"]["completions"] = "3"
    for manifest in (unknown, wrong):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("which", ["least", "most", "server"])
def test_pods_keep_to_the_restricted_standard_without_an_api_token(which: str) -> None:
    assert breaches(pod_of(EVERYTHING[which])) == []
    assert pod_of(EVERYTHING[which])["automountServiceAccountToken"] is False


def test_only_what_is_asked_for_leaves_the_standard() -> None:
    assert [one for one in breaches(pod_of(EVERYTHING["host path"])) if "disk" not in one] == []
    assert any("disk" in one for one in breaches(pod_of(EVERYTHING["host path"])))
    assert any("runAsNonRoot" in one for one in breaches(pod_of(EVERYTHING["root"])))


def test_disks_are_handed_to_a_group_whoever_the_pods_user_is() -> None:
    for which in EVERYTHING:
        said = pod_of(EVERYTHING[which])["securityContext"]
        assert (said["fsGroup"], said["fsGroupChangePolicy"]) == (65532, "OnRootMismatch"), which
    assert "runAsUser" not in pod_of(EVERYTHING["least"])["securityContext"], "the image's"
    assert pod_of(made(fs_group=7))["securityContext"]["fsGroup"] == 7
    own = pod_of(made(fs_group=None))["securityContext"]
    assert not {"fsGroup", "fsGroupChangePolicy", "runAsUser"} & set(own), "the cluster's, as on OpenShift"


def test_data_that_are_only_read_are_not_handed_over() -> None:
    """fsGroup changes every file of a disk that is not read-only as a whole."""
    data = {"name": "data", "mount_path": "/data", "claim": "coco"}
    cache = {"name": "cache", "mount_path": "/cache", "claim": "cache", "read_only": False}
    both = [data | {"name": "cache", "claim": "cache", "sub_path": "coco"}, cache]

    def claims(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = pod_of(made({"volumes": volumes, "cache": "/cache/lwfed"}))["volumes"]
        return [one["persistentVolumeClaim"] for one in found if "persistentVolumeClaim" in one]

    assert claims([data, cache]) == [{"claimName": "coco", "readOnly": True}, {"claimName": "cache"}]
    assert claims(both) == [{"claimName": "cache"}]


def test_a_cache_that_pods_may_only_read_is_refused() -> None:
    disk = {"name": "disk", "mount_path": "/disk", "claim": "disk"}
    with pytest.raises(SpecError, match=r"`cache` /disk/lwfed .*`disk`.*read_only: false"):
        made({"volumes": [disk], "cache": "/disk/lwfed"})
    nested = disk | {"name": "inner", "mount_path": "/disk/lwfed", "read_only": False}
    for volumes, cache in (
        ([disk | {"read_only": False}], "/disk"), ([disk, nested], "/disk/lwfed/a"), ([disk], "/diskette"),
        ([{"name": "scratch", "mount_path": "/disk", "empty_dir": ""}], "/disk"),
    ):  # fmt: skip
        made({"volumes": volumes, "cache": cache})


@pytest.mark.parametrize("which", sorted(EVERYTHING))
def test_the_first_rule_that_fits_counts_and_disruption_is_the_first(which: str) -> None:
    first, gone, final, *others = EVERYTHING[which]["spec"]["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert gone["action"] == "FailJob" and gone["onExitCodes"]["values"] == [CoordinatorGoneError.exit_code]
    assert final["action"] == "FailIndex" and set(final["onExitCodes"]["values"]) == FINAL_CODES
    assert not others
    for rule in (gone, final):
        assert rule["onExitCodes"]["operator"] == "In" and rule["onExitCodes"]["containerName"] == CONTAINER


def test_a_kill_is_never_final() -> None:
    rules = EVERYTHING["most"]["spec"]["podFailurePolicy"]["rules"]
    named = {code for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert named <= set(EXIT_CODES), "codes of ours alone"
    assert not named & {0, 1, 2, OutOfMemoryError.exit_code, 130, 137, 143}


def test_an_index_is_a_task_that_is_tried_again_on_its_own() -> None:
    spec = made(count=5, retries=3)["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 5
    assert spec["backoffLimitPerIndex"] == 3 and "backoffLimit" not in spec
    assert spec["podReplacementPolicy"] == "Failed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert made(count=5, retries=0)["spec"]["backoffLimitPerIndex"] == 0


@pytest.mark.parametrize(("parallel", "count", "expected"), [(None, 5, 5), (2, 5, 2), (9, 5, 5)])
def test_so_many_pods_at_a_time(parallel: int | None, count: int, expected: int) -> None:
    assert made({"parallel": parallel}, count=count)["spec"]["parallelism"] == expected


def test_a_job_outlives_its_call_by_a_little_and_ends_without_a_coordinator() -> None:
    assert made(deadline_s=90.5)["spec"]["activeDeadlineSeconds"] == 91 + SLACK_S
    assert "activeDeadlineSeconds" not in made(deadline_s=None)["spec"]
    assert made(job_ttl_s=0)["spec"]["ttlSecondsAfterFinished"] == 0


def test_kueue_lets_a_suspended_job_go() -> None:
    queued, free = made(queue="team"), made()
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in free["spec"]
    assert not any("kueue" in key for key in free["metadata"]["labels"])


def test_an_owner_takes_its_jobs_along() -> None:
    assert EVERYTHING["most"]["metadata"]["ownerReferences"] == [OWNER]
    assert "ownerReferences" not in EVERYTHING["least"]["metadata"]


def test_no_mesh_has_a_sidecar_in_a_pod_that_ends() -> None:
    template = made()["spec"]["template"]["metadata"]
    assert (
        template["labels"]["sidecar.istio.io/inject"] == template["annotations"]["sidecar.istio.io/inject"] == "false"
    )


def test_several_gpus_are_one_clients_through_torchrun() -> None:
    step = ["step", "train-client", "--store", "s3://bucket/prefix", "--job", EVERYTHING["least"]["metadata"]["name"]]
    assert container_of(made())["command"] == ["lwfed", *step, "--json"]
    assert container_of(made({"gpus": 1}))["command"] == ["lwfed", *step, "--json"]
    several = container_of(made({"gpus": 4}))["command"]
    assert several[:5] == ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert several[5:] == ["-m", "lwfed", *step, "--json"]
    assert container_of(made({"gpus": 4}, step="aggregate-round"))["command"][0] == "lwfed"


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "amd.com/gpu"])
def test_gpus_are_counted_as_text_and_asked_for_as_they_are_limited(resource: str) -> None:
    resources = container_of(made({"gpus": 2, "gpu_resource": resource}))["resources"]
    assert resources["requests"][resource] == resources["limits"][resource] == "2"
    assert resource not in json.dumps(container_of(made())["resources"])
    for part in container_of(EVERYTHING["most"])["resources"].values():
        assert all(isinstance(value, str) for value in part.values())


def test_a_pod_without_gpus_sees_none() -> None:
    assert env_of(made())["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in env_of(made({"gpus": 1}))


def test_memory_is_limited_to_what_is_asked_for_unless_more_is_named() -> None:
    assert container_of(made())["resources"] == {"requests": {"cpu": "1"}}
    asked = container_of(made({"memory": "8Gi", "cpu": "2", "ephemeral_storage": "1Gi"}))["resources"]
    assert asked["requests"] == {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "1Gi"}
    assert asked["limits"] == {"memory": "8Gi"}
    named = container_of(made({"memory": "8Gi", "memory_limit": "9Gi", "cpu_limit": "4"}))["resources"]
    assert named["limits"] == {"memory": "9Gi", "cpu": "4"}


@pytest.mark.parametrize(
    ("pool", "size"), [({}, None), ({"gpus": 1}, "1Gi"), ({"shm": "2Gi"}, "2Gi"), ({"gpus": 2, "shm": "8Gi"}, "8Gi")]
)
def test_shared_memory_is_there_where_gpus_need_it(pool: dict[str, Any], size: str | None) -> None:
    manifest = made(pool)
    volumes = {volume["name"]: volume for volume in pod_of(manifest)["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container_of(manifest)["volumeMounts"]}
    assert mounts.get("/dev/shm") == ("lwfed-shm" if size else None)
    assert volumes.get("lwfed-shm", {}).get("emptyDir") == ({"medium": "Memory", "sizeLimit": size} if size else None)


def test_all_that_is_written_goes_to_a_folder_of_the_pods_own() -> None:
    manifest = made()
    assert {"name": "lwfed-tmp", "emptyDir": {}} in pod_of(manifest)["volumes"]
    assert {"name": "lwfed-tmp", "mountPath": "/tmp"} in container_of(manifest)["volumeMounts"]
    assert all(value.startswith("/tmp") for value in HOME.values() if value.startswith("/"))


def test_each_kind_of_volume_is_mounted_where_it_is_asked_for() -> None:
    manifest = made({"volumes": [*VOLUMES, DISK]})
    own = {volume.pop("name"): volume for volume in copy.deepcopy(pod_of(manifest)["volumes"])}
    assert own["data"] == {"persistentVolumeClaim": {"claimName": "coco"}}
    assert own["settings"] == {"configMap": {"name": "settings"}}
    assert own["keys"] == {"secret": {"secretName": "keys"}}
    assert own["scratch"] == {"emptyDir": {"sizeLimit": "10Gi"}} and own["any"] == {"emptyDir": {}}
    assert own["disk"] == {"hostPath": {"path": "/mnt/disk"}}
    assert [volume["name"] for volume in pod_of(manifest)["volumes"]].count("data") == 1
    mounts = {mount["mountPath"]: mount for mount in container_of(manifest)["volumeMounts"]}
    assert mounts["/data"] == {"name": "data", "mountPath": "/data", "readOnly": True}
    assert mounts["/more"] == {"name": "data", "mountPath": "/more", "subPath": "more"}
    assert {path for path, mount in mounts.items() if mount.get("readOnly")} == {"/data", "/settings", "/keys", "/disk"}


def test_the_pools_own_settings_come_before_those_of_all() -> None:
    every = {"secret": "all", "service_account": "all", "priority_class": "all"}
    (general, own) = made({}, **every), made(FULL_POOL, **every)
    assert pod_of(general)["serviceAccountName"] == pod_of(general)["priorityClassName"] == "all"
    assert container_of(general)["envFrom"] == [{"secretRef": {"name": "all"}}]
    assert container_of(general)["image"] == "lwfed:1"
    assert (pod_of(own)["serviceAccountName"], pod_of(own)["priorityClassName"]) == ("silo", "low")
    assert container_of(own)["envFrom"] == [{"secretRef": {"name": "silo"}}]
    assert container_of(own)["image"] == "silo:2" and pod_of(own)["runtimeClassName"] == "nvidia"
    assert "envFrom" not in container_of(made())


def test_environment_of_the_pool_comes_before_that_of_all_before_what_is_passed_on() -> None:
    context = JobContext(env={"LWFED_RUN_ID": "r", "A": "around", "B": "around", "HOME": "/home/around"})
    env = env_of(made({"env": {"A": "pool"}}, context=context, env={"A": "all", "B": "all"}))
    assert (env["A"], env["B"], env["HOME"], env["TMPDIR"]) == ("pool", "all", "/home/around", "/tmp")
    assert env["LWFED_RUN_ID"] == "r"
    assert env["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert env["POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}


def test_notes_are_the_digests_of_tasks_and_template() -> None:
    notes = made(digest="7" * 64)["metadata"]["annotations"]
    assert notes[TASKS_NOTE] == "7" * 64 and len(notes[TEMPLATE_NOTE]) == 64


def template(pool: dict[str, Any] | None = None, **values: Any) -> str:
    return str(made(pool, **values)["metadata"]["annotations"][TEMPLATE_NOTE])


@pytest.mark.parametrize(
    "values",
    [
        {"name": "another"}, {"count": 9}, {"deadline_s": 7.0}, {"deadline_s": None}, {"digest": "1" * 64},
        {"labels": {"lwfed/run": "another"}}, {"pool": {"parallel": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_a_template_is_the_same_whatever_the_name_the_count_and_the_deadline(values: dict[str, Any]) -> None:
    assert template(**values) == template()


@pytest.mark.parametrize(
    "values",
    [
        {"image": "lwfed:2"}, {"run_as_user": 7}, {"retries": 7}, {"env": {"A": "1"}}, {"queue": "team"},
        {"secret": "other"}, {"job_ttl_s": 1}, {"pool": {"memory": "1Gi"}}, {"pool": {"gpus": 1}},
        {"pool": {"node_selector": {"a": "b"}}}, {"pool": {"volumes": [DISK]}}, {"pool": {"image": "lwfed:3"}},
        {"context": JobContext(env={"LWFED_RUN_ID": "another"})},
    ],
    ids=str,
)  # fmt: skip
def test_a_template_changes_with_all_that_decides_how_pods_run(values: dict[str, Any]) -> None:
    assert template(**values) != template()


def test_equal_work_has_equal_manifests_and_nothing_is_shared() -> None:
    one, other = made(FULL_POOL, **FULL), made(FULL_POOL, **FULL)
    assert one == other
    pod_of(one)["nodeSelector"]["gpu"] = "changed"
    one["metadata"]["labels"]["lwfed/run"] = "changed"
    assert pod_of(other)["nodeSelector"]["gpu"] == "h100" and other["metadata"]["labels"]["lwfed/run"] == "r"


def test_pruned_keeps_what_is_false_or_zero() -> None:
    assert pruned({"a": None, "b": {}, "c": [], "d": (), "e": False, "f": 0, "g": ""}) == {"e": False, "f": 0, "g": ""}
