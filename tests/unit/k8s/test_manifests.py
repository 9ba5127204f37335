"""What holds of all manifests: security, resources, secrets, images, network policies, rights."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lwfed.launch.kubernetes.manifests import Call, JobContext, Work, job
from lwfed.spec.kubernetes import KubernetesSpec
from pipelines.pipeline import LABELS as TASK_LABELS
from tests.unit.k8s.rendered import K8S, LWFED, OVERLAYS, Object, golden
from tests.unit.k8s.restricted import breaches

WORK_LABELS = {"app.kubernetes.io/name": "lwfed", "app.kubernetes.io/managed-by": "lwfed", "lwfed/step": "train-client"}


def launched(**settings: Any) -> Object:
    """Returns the Job of a pool, as the launcher makes it."""
    spec = KubernetesSpec.model_validate({"image": "lwfed:1", **settings})
    call = Call(step="train-client", labels=WORK_LABELS)
    work = Work(name="lwfed-1", call=call, clients=("a", "b"), store="s3://a", digest="0" * 64)
    return job(work, spec.pools[0], spec, context=JobContext())


def pod_templates(found: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in found:
        if "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]


def of_kind(found: list[Object], kind: str) -> list[Object]:
    return [one for one in found if one["kind"] == kind]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    for rule in selector.get("matchExpressions", ()):
        key, values = rule["key"], rule.get("values", ())
        held = {
            "Exists": key in labels, "DoesNotExist": key not in labels,
            "In": labels.get(key) in values, "NotIn": labels.get(key) not in values,
        }  # fmt: skip
        if not held[rule["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


# ---- pods


@pytest.mark.parametrize("name", LWFED)
def test_pods_are_restricted(name: str) -> None:
    assert {
        pod: breaches(template["spec"]) for pod, template in pod_templates(golden(name)) if breaches(template["spec"])
    } == {}


def test_the_trial_of_the_store_is_a_pod_like_others() -> None:
    check = yaml.safe_load((K8S / "store-check.yaml").read_text(encoding="utf-8"))
    template = check["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert breaches(template["spec"]) == [] and template["spec"]["automountServiceAccountToken"] is False
    policy = next(one for one in of_kind(golden("cluster"), "NetworkPolicy") if one["metadata"]["name"] == "lwfed-s3")
    assert selects(policy["spec"]["podSelector"], template["metadata"]["labels"])
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]), "a quota refuses pods without"
    kubernetes_validate.validate(check, "1.34", strict=True)


def test_pods_of_the_launcher_are_restricted() -> None:
    gpu = {"name": "gpu", "gpus": 2, "volumes": [{"name": "data", "mount_path": "/data", "claim": "data"}]}
    for made in (launched(), launched(pools=[gpu])):
        assert breaches(made["spec"]["template"]["spec"]) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["hostNetwork"], True, "hostNetwork"),
        (["volumes", 0], {"name": "tmp", "hostPath": {"path": "/"}}, "volume tmp"),
        (["securityContext", "runAsNonRoot"], False, "mlflow: runAsNonRoot"),
        (["securityContext", "runAsUser"], 0, "mlflow: runAsUser"),
        (["securityContext", "seccompProfile"], {"type": "Unconfined"}, "mlflow: seccompProfile"),
        (["containers", 0, "securityContext", "capabilities"], {"drop": ["NET_RAW"]}, "mlflow: capabilities"),
        (["containers", 0, "securityContext", "allowPrivilegeEscalation"], True, "mlflow: allowPrivilegeEscalation"),
        (["containers", 0, "securityContext", "readOnlyRootFilesystem"], False, "mlflow: readOnlyRootFilesystem"),
        (["containers", 0, "securityContext", "privileged"], True, "mlflow: privileged"),
    ],
)
def test_the_standard_sees_each_breach(path: list[Any], value: Any, said: str) -> None:
    (pod,) = [copy.deepcopy(one["spec"]["template"]["spec"]) for one in of_kind(golden("kind"), "Deployment")]
    assert breaches(pod) == []
    *parents, last = path
    place: Any = pod
    for key in parents:
        place = place[key]
    place[last] = value
    assert breaches(pod) == [said]


@pytest.mark.parametrize("name", LWFED)
def test_containers_have_requests_limits_and_probes(name: str) -> None:
    for pod, template in pod_templates(golden(name)):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(resources[kind]), (pod, container["name"], kind)
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), (pod, container["name"])


@pytest.mark.parametrize("name", LWFED)
def test_pods_have_no_token_and_no_sidecar(name: str) -> None:
    for pod, template in pod_templates(golden(name)):
        assert template["spec"]["automountServiceAccountToken"] is False, pod
        assert template["spec"]["enableServiceLinks"] is False, pod
        assert template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false", pod


@pytest.mark.parametrize("name", LWFED)
def test_images_are_pinned(name: str) -> None:
    for pod, template in pod_templates(golden(name)):
        for container in template["spec"]["containers"]:
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            assert tag and tag != "latest", (pod, container["image"])


def test_openshift_gives_users_and_nobody_else() -> None:
    said = json.dumps(golden("openshift"))
    assert not re.search(r"runAsUser|runAsGroup|fsGroup", said)
    assert "runAsUser" in json.dumps(golden("kind"))


def test_minio_is_the_version_that_tests_run_against() -> None:
    version = re.search(r"^ARG VERSION=(\S+)$", (K8S / "components/minio/Containerfile").read_text(), re.MULTILINE)
    tested = re.search(r"^VERSION=(\S+)$", (K8S.parent / ".ci/minio").read_text(), re.MULTILINE)
    assert version and tested and version[1] == tested[1]


def quantity(text: str) -> int:
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(text[:-2]) * units[text[-2:]]


def test_no_pool_asks_for_more_than_the_quotas_defaults_let_it_have() -> None:
    """A default limit below what a pod asks for would have the pod refused, whatever the pool says."""
    (limits,) = of_kind(golden("everything"), "LimitRange")
    (rule,) = limits["spec"]["limits"]
    pool = {"name": "large", "cpu": "64", "memory": "512Gi", "ephemeral_storage": "900Gi", "gpus": 8}
    (container,) = launched(pools=[pool])["spec"]["template"]["spec"]["containers"]
    asked, limited = container["resources"]["requests"], container["resources"]["limits"]
    assert set(rule["default"]) & (set(asked) - set(limited)) == set()
    for key, most in rule["default"].items():
        assert quantity(rule["defaultRequest"][key]) <= quantity(most)


# ---- names and secrets


@pytest.mark.parametrize("name", LWFED)
def test_all_is_in_one_namespace(name: str) -> None:
    found = golden(name)
    spaces = {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"}
    assert len(spaces) == 1 and None not in spaces
    assert {one["metadata"]["name"] for one in of_kind(found, "Namespace")} <= spaces
    subjects = [subject for one in of_kind(found, "RoleBinding") for subject in one["subjects"]]
    assert {subject["namespace"] for subject in subjects} == spaces


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_is_written_down(name: str) -> None:
    found = golden(name)
    assert of_kind(found, "Secret") == []
    for pod, template in pod_templates(found):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", ()):
                secret = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"])
                assert not (secret and "value" in variable), (pod, variable["name"])
    words = re.findall(r"://[^/\s\"]*:([^/\s\"@]+)@", json.dumps(found))
    assert set(words) <= {"$(POSTGRES_PASSWORD)"}
    assert not any(base64.b64encode(word).decode() in json.dumps(found) for word in (b"minio123", b"minioadmin"))


@pytest.mark.parametrize("name", LWFED)
def test_what_is_deleted_by_label_is_of_this_installation(name: str) -> None:
    """All of it, and nothing of the whole cluster: neither the namespace nor what other installations use."""
    for one in golden(name):
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"], one["metadata"]["name"]
        part = one["metadata"].get("labels", {}).get("app.kubernetes.io/part-of")
        assert part == (None if one["kind"] == "Namespace" else "lwfed"), one["metadata"]["name"]


# ---- Services and network policies


@pytest.mark.parametrize("name", LWFED)
def test_services_find_their_pods_and_ports(name: str) -> None:
    found = golden(name)
    for service in of_kind(found, "Service"):
        (template,) = [
            template
            for _, template in pod_templates(found)
            if selects({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"])
        ]
        names = {port["name"] for one in template["spec"]["containers"] for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_labels_are_those_of_the_launcher_and_the_pipeline() -> None:
    assert launched()["spec"]["template"]["metadata"]["labels"].items() >= WORK_LABELS.items()
    assert TASK_LABELS == {"app.kubernetes.io/name": "lwfed", "app.kubernetes.io/component": "coordinator"}


@pytest.mark.parametrize("name", LWFED)
def test_policies_select_pods_that_exist(name: str) -> None:
    found = golden(name)
    known = [WORK_LABELS, dict(TASK_LABELS), *(template["metadata"]["labels"] for _, template in pod_templates(found))]
    for policy in of_kind(found, "NetworkPolicy"):
        spec, who = policy["spec"], policy["metadata"]["name"]
        assert any(selects(spec["podSelector"], labels) for labels in known), who
        peers = [peer for rule in spec.get("ingress", ()) for peer in rule["from"]]
        peers += [peer for rule in spec.get("egress", ()) for peer in rule["to"]]
        for peer in peers:
            if "namespaceSelector" in peer or "ipBlock" in peer:
                continue  # of others
            selector = peer["podSelector"]
            assert any(selects(selector, labels) for labels in known) or "matchLabels" not in selector, (who, peer)


def allowed(found: list[Object], labels: Mapping[str, str]) -> list[tuple[Object, int]]:
    """Returns what pods of these labels may ask: peers and ports; fails where nothing restricts them."""
    policies = [one["spec"] for one in of_kind(found, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels)]
    assert any("Egress" in spec["policyTypes"] for spec in policies)
    return [
        (peer, port["port"])
        for spec in policies
        for rule in spec.get("egress", ())
        for peer in rule["to"]
        for port in rule["ports"]
    ]


@pytest.mark.parametrize("name", LWFED)
def test_pods_that_policies_hold_find_dns_on_nodes_with_a_cache(name: str) -> None:
    """Policies for egress name NodeLocal DNSCache's address wherever they name the cluster's DNS."""
    for policy in of_kind(golden(name), "NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            if {"protocol": "UDP", "port": 53} in rule["ports"]:
                blocks = [peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer]
                assert blocks == ["169.254.20.10/32"], policy["metadata"]["name"]


@pytest.mark.parametrize("name", [name for name in LWFED if name not in ("kind", "kubeflow")])
def test_only_needed_flows(name: str) -> None:
    found = golden(name)
    client = allowed(found, WORK_LABELS)
    coordinator = allowed(found, TASK_LABELS)
    dns, store = (5353 if name == "openshift" else 53), (443 if name == "cluster" else 9000)
    assert {port for _, port in client} == {dns, store}
    assert {port for _, port in coordinator} >= {dns, store, 443, 6443, 8887}
    assert all(peer.get("ipBlock", {}).get("cidr") != "0.0.0.0/0" for peer, _ in client)
    for labels in (WORK_LABELS, TASK_LABELS):
        policies = [
            one["spec"] for one in of_kind(found, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels)
        ]
        assert any("Ingress" in spec["policyTypes"] for spec in policies)
        assert not any(spec.get("ingress") for spec in policies)


def test_addresses_to_change_exist_nowhere() -> None:
    """Until they are changed, nothing gets through."""
    blocks = [
        peer["ipBlock"]["cidr"]
        for labels in (WORK_LABELS, TASK_LABELS)
        for peer, port in allowed(golden("cluster"), labels)
        if "ipBlock" in peer and port != 53
    ]
    assert blocks and all(cidr.startswith("192.0.2.") for cidr in blocks)


def test_minio_and_postgres_are_asked_by_whom_they_serve() -> None:
    found = golden("kind")
    asked = {one["metadata"]["name"]: one["spec"]["ingress"] for one in of_kind(found, "NetworkPolicy")}

    def lets(policy: str, labels: Mapping[str, str]) -> bool:
        peers = [peer for rule in asked[policy] for peer in rule["from"] if "namespaceSelector" not in peer]
        return any(selects(peer["podSelector"], labels) for peer in peers)

    templates = {name: template["metadata"]["labels"] for name, template in pod_templates(found)}
    stranger = {"app": "ml-pipeline"}
    assert lets("lwfed-minio", WORK_LABELS) and lets("lwfed-minio", TASK_LABELS)
    assert lets("lwfed-minio", templates["lwfed-mlflow"]) and not lets("lwfed-minio", stranger)
    assert lets("lwfed-postgres", templates["lwfed-mlflow"])
    assert not lets("lwfed-postgres", WORK_LABELS) and not lets("lwfed-postgres", TASK_LABELS)
    assert lets("lwfed-mlflow-server", TASK_LABELS) and not lets("lwfed-mlflow-server", WORK_LABELS)


# ---- components of others


def test_the_plugin_is_set_by_keys_that_kubeflow_knows() -> None:
    plugin = json.loads((K8S / "components/kfp-mlflow-plugin/plugin.json").read_text())
    assert set(plugin) <= {"endpoint", "timeout", "tls", "settings"}
    assert plugin["settings"]["injectUserEnvVars"] is True
    assert set(plugin["settings"]) <= {
        "authType", "workspacesEnabled", "defaultExperimentName", "experimentDescription", "injectUserEnvVars",
        "kfpBaseURL", "kfpRunURLPathTemplate", "mlflowBaseURL", "mlflowUIPathPrefix", "credentialSecretRef",
    }  # fmt: skip
    (server,) = golden("kfp")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "kfp-api-server:2.17.0"
    (mount,) = container["volumeMounts"]
    (volume,) = server["spec"]["template"]["spec"]["volumes"]
    assert mount["mountPath"] == "/config/config.json" and mount["name"] == volume["name"]


def test_kueue_fits_together() -> None:
    found = golden("kueue-cluster")
    (queue,) = of_kind(found, "ClusterQueue")
    (local,) = of_kind(golden("everything"), "LocalQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert all("namespace" not in one["metadata"] for one in found)
    flavors = {one["metadata"]["name"] for one in of_kind(found, "ResourceFlavor")}
    (group,) = queue["spec"]["resourceGroups"]
    assert {flavor["name"] for flavor in group["flavors"]} == flavors
    for flavor in group["flavors"]:
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    space = queue["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert space == local["metadata"]["namespace"]
