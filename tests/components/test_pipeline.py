"""The pipeline: one task a stage, chained by strings that decide its result, and small whatever the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kfp import components as kfp_components

from lwfed.run.specs import MARK, unpack_spec
from lwfed.spec.load import build_spec, load_spec, preset_names, to_values
from lwfed.spec.run import RunSpec
from lwfed.store.local import LocalStore
from lwfed.types.canonical import digest_of
from lwfed.types.errors import SpecError
from pipelines import PIPELINE
from pipelines.compile import size_warning
from pipelines.outline import outlines_of
from pipelines.pipeline import SECRET_KEYS
from pipelines.spec_text import spec_text
from pipelines.stages import parse_stages, pick_stages
from tests.components.compiled import IMAGE, cluster_spec, compiled, containers_of, paper_spec, tasks_of
from tests.tiny import tiny_spec

if TYPE_CHECKING:
    from tests.tiny import Finished

KIB = 1024
SMALL = 64 * KIB


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The tiny experiment: its pipeline, its settings of Kubernetes, its text."""
    done, pipeline, settings = compiled(cluster_spec(), tmp_path_factory.mktemp("tiny"))
    return pipeline, settings, done.path.read_text(encoding="utf-8")


def test_pipeline_loads_and_has_its_constant_name(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, _, text = tiny
    assert pipeline["pipelineInfo"]["name"] == PIPELINE
    assert kfp_components.load_component_from_text(text).pipeline_spec.pipeline_info.name == PIPELINE


def test_a_task_a_stage_within_an_exit_handler(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, _, _ = tiny
    tasks = tasks_of(pipeline)
    assert {name: task["taskInfo"]["name"] for name, task in tasks.items()} == {
        "cleanup": "clean up",
        "exit-handler-1": "experiment",
        "prepare": "prepare",
        "train-stage-1": "stage 1: image 0, text 0",
        "train-stage-2": "stage 2: image 1, text 1",
        "evaluate": "evaluate",
        "report": "report",
    }
    assert tasks["cleanup"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert set(pipeline["root"]["dag"]["tasks"]) == {"cleanup", "exit-handler-1"}
    assert "evaluate" in tasks["report"]["dependentTasks"]
    outputs = pipeline["components"][tasks["report"]["componentRef"]["name"]]["outputDefinitions"]["artifacts"]
    assert outputs["model"]["artifactType"]["schemaTitle"] == "system.Model"


def test_stages_are_chained_by_strings_and_integers(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, _, _ = tiny
    outlines = outlines_of(cluster_spec())
    for outline in outlines:
        task = tasks_of(pipeline)[f"train-stage-{outline.stage}"]
        given = task["inputs"]["parameters"]
        assert set(given) == {
            "spec", "store", "stage", "plan_digest", "input_digest", "data_version", "code_version",
        }  # fmt: skip
        assert "artifacts" not in task["inputs"]
        assert given["plan_digest"]["runtimeValue"]["constant"] == outline.plan_digest
        assert given["stage"]["runtimeValue"]["constant"] == outline.stage
        before, key = ("train-stage-1", "digest") if outline.stage == 2 else ("prepare", "input_digest")
        assert given["input_digest"]["taskOutputParameter"] == {"producerTask": before, "outputParameterKey": key}
        kinds = {
            name: item["parameterType"]
            for name, item in pipeline["components"][task["componentRef"]["name"]]["inputDefinitions"][
                "parameters"
            ].items()
        }
        assert kinds.pop("resources") == "TASK_CONFIG" and kinds.pop("stage") == "NUMBER_INTEGER"
        assert set(kinds.values()) == {"STRING"}


def test_run_id_comes_by_environment_alone(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, settings, _ = tiny
    parameters = {name for task in tasks_of(pipeline).values() for name in task["inputs"]["parameters"]}
    assert not any("run" in name for name in parameters)
    expected = [{"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}]
    assert {executor.removeprefix("exec-") for executor in settings} == set(containers_of(pipeline))
    assert all(item["fieldPathAsEnv"] == expected for item in settings.values())


def test_only_what_its_inputs_decide_is_cached(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, _, _ = tiny
    cached = {name for name, task in tasks_of(pipeline).items() if task.get("cachingOptions")}
    assert cached == {"train-stage-1", "train-stage-2", "evaluate"}


def test_pods_get_image_credentials_and_environment(tmp_path: Path) -> None:
    spec = cluster_spec(
        "kubernetes.image_pull_policy=Always", "kubernetes.image_pull_secrets=[pull]", "kubernetes.run_as_user=1000"
    )
    _, pipeline, settings = compiled(spec, tmp_path)
    for container in containers_of(pipeline).values():
        assert container["image"] == IMAGE
        assert container["env"] == [{"name": "AWS_ENDPOINT_URL_S3", "value": "http://minio:9000"}]
    for item in settings.values():
        assert item["imagePullPolicy"] == "Always"
        assert [secret["secretName"] for secret in item["imagePullSecret"]] == ["pull"]
        assert item["podMetadata"]["labels"]["app.kubernetes.io/name"] == "lwfed"
        assert item["securityContext"] == {"runAsUser": "1000", "runAsNonRoot": True}
        (secret,) = item["secretAsEnv"]
        assert secret["secretName"] == "lwfed-store" and secret["optional"]
        assert {key["envVar"] for key in secret["keyToEnv"]} == set(SECRET_KEYS) - {"AWS_ENDPOINT_URL_S3"}


def test_settings_of_a_stage_are_for_clients_where_pools_are_silent(
    tiny: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    pipeline, _, _ = tiny
    passed = pipeline["components"]["comp-train-stage-1"]["taskConfigPassthroughs"]
    assert [item["field"] for item in passed if not item.get("applyToTask")] == [
        "RESOURCES", "KUBERNETES_TOLERATIONS", "KUBERNETES_NODE_SELECTOR", "KUBERNETES_AFFINITY",
    ]  # fmt: skip
    containers = containers_of(pipeline)
    assert "resources" not in containers["train-stage-1"]
    assert containers["prepare"]["resources"]["resourceMemoryLimit"] == "2Gi"


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "kubernetes.coordinator="
            "{memory: 3Gi, node_selector: {disk: ssd}, tolerations: [{key: cpu, operator: Exists}]}",
        ),
        ("kubernetes.pools=[{name: clients, cpu: '2', memory: 8Gi}]",),
    ],
    ids=["the coordinator has its own", "pools say all"],
)
def test_settings_of_a_stage_are_the_coordinators_else(overrides: tuple[str, ...], tmp_path: Path) -> None:
    spec = cluster_spec(*overrides)
    _, pipeline, settings = compiled(spec, tmp_path)
    assert "taskConfigPassthroughs" not in pipeline["components"]["comp-train-stage-1"]
    own = spec.kubernetes.coordinator
    for container in containers_of(pipeline).values():
        asked = container["resources"]
        assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == (own.cpu, own.memory)
        assert asked["resourceMemoryLimit"] == own.memory
    for item in settings.values():
        assert item.get("nodeSelector", {}).get("labels", {}) == own.node_selector
        assert [toleration["key"] for toleration in item.get("tolerations", [])] == [t["key"] for t in own.tolerations]


def test_compiled_twice_is_the_same_bytes(tiny: tuple[dict[str, Any], dict[str, Any], str], tmp_path: Path) -> None:
    complete = build_spec(to_values(cluster_spec("launch.kind=kubernetes")))
    done, _, _ = compiled(complete, tmp_path)
    assert done.path.read_text(encoding="utf-8") == tiny[2]


def test_a_rerun_holds_its_stages_alone(tmp_path: Path) -> None:
    done, pipeline, _ = compiled(paper_spec(), tmp_path, stages=[3], parent=("base", 3), fresh=True)
    tasks = tasks_of(pipeline)
    assert [name for name in tasks if name.startswith("train")] == ["train-stage-3"]
    assert done.titles == ["stage 3: image 4-5, text 2"]
    given = tasks["prepare"]["inputs"]["parameters"]
    assert given["parent"]["runtimeValue"]["constant"] == "base:3"
    assert given["fresh"]["runtimeValue"]["constant"] is True
    for name in ("evaluate", "report"):
        assert tasks[name]["inputs"]["parameters"]["stage"]["runtimeValue"]["constant"] == 3


@pytest.mark.parametrize(
    ("stages", "parent", "expected"),
    [(None, None, [1, 2, 3, 4, 5, 6]), (None, 5, [5, 6]), ([1, 2], None, [1, 2]), ([2, 3], 2, [2, 3])],
)
def test_stages_follow_the_parent(stages: list[int] | None, parent: int | None, expected: list[int]) -> None:
    assert pick_stages(stages, count=6, parent=("base", parent) if parent else None) == expected


@pytest.mark.parametrize(
    ("stages", "parent", "words"),
    [
        ([3], None, "starts at stage 3, but there is no parent run"),
        ([3, 4], 2, "starts at stage 3, but .* 2"),
        ([1, 3], None, "no consecutive stages 1 to 3"),
        ([], None, "stages 1 to 6"),
        ([6, 7], 6, "6 to 7 .* stages 1 to 6"),
        (None, 7, "stages 1 to 6"),
        (range(5, 4), 5, "stages 1 to 6"),
    ],
)
def test_stages_that_cannot_run_are_refused(stages: Sequence[int] | None, parent: int | None, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        pick_stages(stages, count=6, parent=("base", parent) if parent else None)


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("3-5", [3, 4, 5]), ("3-", [3, 4, 5, 6]), (" 3 ", [3])])
def test_stages_are_read_as_they_are_written(text: str | None, expected: list[int] | None) -> None:
    found = parse_stages(text, count=6)
    assert (found if found is None else list(found)) == expected


@pytest.mark.parametrize("text", ["", "a", "3-a", "-3", "3,4", "3-4-5"])
def test_what_names_no_stages_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--stages"):
        parse_stages(text, count=6)


@pytest.mark.parametrize("num_clients", [10, 1000])
@pytest.mark.parametrize("rounds", [[15] * 6, [0, 0, 0, 20, 30, 70]], ids=["uniform", "late"])
def test_size_does_not_grow_with_rounds_or_clients(num_clients: int, rounds: list[int], tmp_path: Path) -> None:
    spec = paper_spec(f"federation.num_clients={num_clients}", f"stages.rounds={rounds}")
    done, _, _ = compiled(spec, tmp_path)
    assert done.file_bytes < SMALL
    assert done.object_bytes < 1024 * KIB * 3 / 4 and size_warning(done) is None
    assert done.pods == 22


def test_digests_of_plans_are_those_of_the_run(finished: Finished) -> None:
    root = finished.bench.store.uri
    outlines = outlines_of(tiny_spec(root))
    assert [outline.plan_digest for outline in outlines] == [
        digest_of(plan.model_dump(mode="json")) for plan in finished.plans
    ]


def test_weights_that_are_elsewhere_leave_the_plan_open(tmp_path: Path) -> None:
    spec = paper_spec(f"model.encoders.image.weights={tmp_path / 'nowhere'}")
    outlines = outlines_of(spec)
    assert {outline.plan_digest for outline in outlines} == {""}
    assert outlines[2].title == "stage 3 of 6"


def test_titles_name_blocks_that_are_not_trained() -> None:
    outlines = outlines_of(paper_spec("stages.rounds=[0,15,15,15,15,15]"))
    assert outlines[0].title == "stage 1: image 0-1, text 0, untrained"
    assert len(outlines_of(load_spec("coco-end-to-end"))) == 1


SPECS = {
    **{name: load_spec(name) for name in preset_names()},
    "tiny": cluster_spec(),
    "pools": cluster_spec(
        "kubernetes.pools=[{name: big, clients: [client-000], gpus: 1, volumes: [{name: d, mount_path: /d, claim: c}]},"
        " {name: small}]",
        "kubernetes.server={name: server, cpu: '4'}",
        "federation.partition={kind: dirichlet, alpha: 0.5}",
    ),
}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_text_of_a_spec_is_the_spec(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    text = spec_text(spec)
    assert not text.startswith(MARK) and len(text) < 2 * KIB
    assert to_values(unpack_spec(text, store=LocalStore(tmp_path))) == to_values(spec)
    assert spec_text(build_spec(to_values(spec))) == text


def test_a_long_spec_travels_by_its_digest(tmp_path: Path) -> None:
    spec: RunSpec = build_spec({"kubernetes": {"env": {f"KEY_{i}": "x" * 100 for i in range(400)}}})
    store = LocalStore(tmp_path)
    text = spec_text(spec, store=store)
    assert text.startswith(MARK) and spec_text(spec) == text
    assert unpack_spec(text, store=store) == spec


def test_parameters_have_no_names_that_yaml_mistakes(tiny: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    names: set[str] = set()

    def look(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            names.add(key)
            look(item)

    look(yaml.load(tiny[2].partition("\n---\n")[0], Loader=yaml.BaseLoader))
    assert not {name.lower() for name in names} & {"n", "y", "no", "yes", "on", "off"}
