"""The pipeline of an experiment: one small coordinator task a stage, chained by the digests of checkpoints.

Rounds and clients are no tasks of the pipeline: the coordinator starts their pods as Jobs. Tasks get strings and
integers that decide their result, so Kubeflow Pipelines' cache of them is sound; the run's id is not among them and
comes to the pods as environment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl, kubernetes

from components.building import at
from components.cleanup.component import IMAGE, cleanup
from components.evaluate.component import evaluate
from components.prepare.component import prepare
from components.report.component import report
from components.train_stage.component import PASSTHROUGHS, train_stage
from lwfed.spec.kubernetes import CoordinatorSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from pipelines.outline import Outline, outlines_of
from pipelines.spec_text import spec_text

NAME = "lwfed-experiment"
"""Constant: Kubeflow Pipelines keep their cache by it."""
DESCRIPTION = "Federated multimodal learning, stage by stage (lwfed)"
RUN_ID_ENV = "KFP_RUN_ID"
RUN_ID_LABEL = "metadata.labels['pipeline/runid']"
LABELS: Mapping[str, str] = {"app.kubernetes.io/name": "lwfed", "app.kubernetes.io/component": "coordinator"}
SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
"""Keys of `kubernetes.secret` that reach the pipeline's pods. Those it lacks are left out: lwfed says then what is
missing, where a pod that waits for them would leave the run going on for ever."""


def experiment_pipeline(
    spec: RunSpec,
    *,
    stages: Sequence[int] | None = None,
    parent: str = "",
    fresh: bool = False,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Builds the pipeline of an experiment, or of some of its stages.

    Args:
        spec: The experiment.
        stages: The stages to train, without gaps; None: from the parent's on, else all.
        parent: `RUN:STAGE`: the run it starts from, and the first stage it trains; empty for none.
        fresh: Train anew, even where equal work is committed.
        env: Further environment of its tasks.

    Returns:
        What `kfp.compiler` compiles, and what runs under `kfp.local` when it is called.

    Raises:
        SpecError: The stages do not fit the spec or the parent.
    """
    outlines = chosen(outlines_of(spec), stages=stages, parent=parent)
    image = spec.kubernetes.image or IMAGE
    for_clients = speaks_for_clients(spec)
    passed = PASSTHROUGHS if for_clients else ()
    last = outlines[-1].stage

    def dressed(task: Any, title: str, *, cache: bool = True, placed: bool = True) -> Any:
        return _dressed(task, title, spec=spec, cache=cache, env=env or {}, placed=placed)

    @dsl.pipeline(name=NAME, description=DESCRIPTION, display_name=NAME)
    def pipeline(spec: str = spec_text(spec), store: str = spec.store.uri) -> None:
        exit_task = dressed(at(cleanup, image)(spec=spec, store=store), "clean up", cache=False)
        with dsl.ExitHandler(exit_task, name="experiment"):
            first = dressed(
                at(prepare, image)(spec=spec, store=store, parent=parent, fresh=fresh), "prepare", cache=False
            )
            digest = first.outputs["input_digest"]
            for outline in outlines:
                task = at(train_stage, image, name=f"train-stage-{outline.stage}", passthroughs=passed)(
                    spec=spec,
                    store=store,
                    stage=outline.stage,
                    plan_digest=outline.plan_digest,
                    input_digest=digest,
                    data_version=first.outputs["data_version"],
                    code_version=first.outputs["code_version"],
                )
                digest = dressed(task, outline.title, placed=not for_clients).outputs["digest"]
            judged = dressed(at(evaluate, image)(spec=spec, store=store, stage=last, digest=digest), "evaluate")
            dressed(
                at(report, image)(spec=spec, store=store, stage=last, digest=digest).after(judged),
                "report",
                cache=False,
            )

    return pipeline


def chosen(outlines: Sequence[Outline], *, stages: Sequence[int] | None, parent: str) -> list[Outline]:
    """Picks the stages of a pipeline.

    Raises:
        SpecError: There are no such stages, they have gaps, or nothing is there to start from.
    """
    count = len(outlines)
    start = _first_of(parent)
    wanted = list(range(start, count + 1)) if stages is None else list(stages)
    if not wanted or wanted != list(range(wanted[0], wanted[-1] + 1)) or wanted[0] < 1 or wanted[-1] > count:
        raise SpecError(
            f"the stages {', '.join(map(str, wanted)) or '(none)'} are no run of stages from 1 to {count}",
            remedy="name them without gaps, such as 3-6",
        )
    if wanted[0] != start:
        raise SpecError(
            f"stage {wanted[0]} would start from nothing"
            if start == 1
            else f"the parent is to be left at stage {start}",
            remedy=f"name a parent that has the stages before it: RUN:{wanted[0]}",
        )
    return [outlines[stage - 1] for stage in wanted]


def speaks_for_clients(spec: RunSpec) -> bool:
    """Says whether what is set on a stage's task is meant for the clients' pods, and not for the coordinator's own.

    Kubeflow Pipelines hand it to one of them. It is the coordinator's where `kubernetes.coordinator` says something,
    or where all pools say what they need.
    """
    pools = spec.kubernetes.pools
    return spec.kubernetes.coordinator == CoordinatorSpec() and not all(pool.cpu and pool.memory for pool in pools)


def _first_of(parent: str) -> int:
    if not parent:
        return 1
    run_id, sign, stage = parent.rpartition(":")
    if not run_id or not sign or not stage.isdigit():
        raise SpecError(f"`{parent}` names no parent", remedy="write RUN:STAGE")
    return int(stage)


def _dressed(task: Any, title: str, *, spec: RunSpec, cache: bool, env: Mapping[str, str], placed: bool) -> Any:
    """Gives a task its name for people, and its pod what the spec says; where it runs only if it is `placed`."""
    settings, own = spec.kubernetes, spec.kubernetes.coordinator
    task.set_display_name(title)
    task.set_caching_options(cache)
    kubernetes.use_field_path_as_env(task, env_name=RUN_ID_ENV, field_path=RUN_ID_LABEL)
    said = {**settings.env, **env}
    for name, value in sorted(said.items()):
        task.set_env_variable(name, value)
    if settings.secret:
        keys = {key: key for key in SECRET_KEYS if key not in said}
        kubernetes.use_secret_as_env(task, settings.secret, keys, optional=True)
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    for name, value in LABELS.items():
        kubernetes.add_pod_label(task, name, value)
    if settings.run_as_user is not None:
        kubernetes.set_security_context(
            task, run_as_user=settings.run_as_user, run_as_non_root=settings.run_as_user != 0
        )
    if not placed:
        return task
    task.set_cpu_request(own.cpu).set_memory_request(own.memory).set_memory_limit(own.memory)
    for name, value in sorted(own.node_selector.items()):
        kubernetes.add_node_selector(task, name, value)
    for toleration in own.tolerations:
        kubernetes.add_toleration(task, **_toleration(toleration))
    return task


def _toleration(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a toleration under the names of kfp's arguments."""
    names = {"key": "key", "operator": "operator", "value": "value", "effect": "effect",
             "tolerationSeconds": "toleration_seconds"}  # fmt: skip
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise SpecError(
            f"`kubernetes.coordinator.tolerations` has the unknown key {unknown[0]}",
            remedy=f"known: {', '.join(names)}",
        )
    return {names[key]: value for key, value in values.items()}
