"""Builds the pipeline of an experiment: one small coordinator task per stage, chained by digests of checkpoints.

Rounds and clients are not tasks of the pipeline: the coordinator starts their pods as Jobs. A task's inputs are the
strings and integers that decide its result, so that Kubeflow Pipelines' cache is sound. The run's id is not an input;
pods receive it in their environment.
"""

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from components.building import at
from components.cleanup.component import IMAGE, cleanup
from components.evaluate.component import evaluate
from components.prepare.component import prepare
from components.report.component import report
from components.train_stage.component import PASSTHROUGHS, train_stage
from lwfed.run.parent import parent_text
from lwfed.spec.kubernetes import CoordinatorSpec, KubernetesSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from pipelines import DESCRIPTION, PIPELINE
from pipelines.outline import outlines_of
from pipelines.spec_text import spec_text
from pipelines.stages import Work, pick_stages

RUN_ID_ENV = "KFP_RUN_ID"
RUN_ID_LABEL = "metadata.labels['pipeline/runid']"
LABELS: Mapping[str, str] = {"app.kubernetes.io/name": "lwfed", "app.kubernetes.io/component": "coordinator"}
SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
"""Keys of `kubernetes.secret` that the pipeline's pods receive. All are optional: lwfed reports a missing one, while a
pod that waits for a required key would leave the run running forever."""


def experiment_pipeline(work: Work, *, cache: bool = True) -> Any:
    """Builds the pipeline of an experiment, or of some of its stages.

    Args:
        work: The work to train.
        cache: Whether Kubeflow Pipelines may take tasks' results from its cache.

    Returns:
        A pipeline for `kfp.compiler`, which runs under `kfp.local` when called.

    Raises:
        SpecError: The stages do not fit the spec or the parent.
    """
    spec = work.spec
    outlines = outlines_of(spec)
    outlines = [outlines[stage - 1] for stage in pick_stages(work.stages, count=len(outlines), parent=work.parent)]
    image = spec.kubernetes.image or IMAGE
    for_clients = settings_are_for_clients(spec)
    passed = PASSTHROUGHS if for_clients else ()
    last = outlines[-1].stage

    def set_up(task: Any, title: str, *, cached: bool = False, sized: bool = True) -> Any:
        task.set_display_name(title)
        task.set_caching_options(cache and cached)
        _set_pod(task, spec.kubernetes)
        if sized:
            _set_size_and_place(task, spec.kubernetes.coordinator)
        return task

    @dsl.pipeline(name=PIPELINE, description=DESCRIPTION, display_name=PIPELINE)
    def pipeline(spec: str = spec_text(spec), store: str = spec.store.uri) -> None:
        with dsl.ExitHandler(set_up(at(cleanup, image)(spec=spec, store=store), "clean up"), name="experiment"):
            start = {"parent": parent_text(work.parent), "fresh": work.fresh}
            first = set_up(at(prepare, image)(spec=spec, store=store, **start), "prepare")
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
                digest = set_up(task, outline.title, cached=True, sized=not for_clients).outputs["digest"]
            result = {"spec": spec, "store": store, "stage": last, "digest": digest}
            evaluated = set_up(at(evaluate, image)(**result), "evaluate", cached=True)
            set_up(at(report, image)(**result).after(evaluated), "report")

    return pipeline


def settings_are_for_clients(spec: RunSpec) -> bool:
    """Whether the settings of a stage's task apply to the clients' pods, not to the coordinator's own.

    Kubeflow Pipelines can pass them to only one of these. They apply to the coordinator if `kubernetes.coordinator` is
    set, or if all pools set their own resources.
    """
    pools = [pool for pool in spec.kubernetes.pools if not pool.remote]
    return spec.kubernetes.coordinator == CoordinatorSpec() and not all(pool.cpu and pool.memory for pool in pools)


def _set_pod(task: Any, settings: KubernetesSpec) -> None:
    """Sets the environment, the security context and the labels of a task's pod."""
    kubernetes.use_field_path_as_env(task, env_name=RUN_ID_ENV, field_path=RUN_ID_LABEL)
    for name, value in sorted(settings.env.items()):
        task.set_env_variable(name, value)
    if settings.secret:
        keys = {key: key for key in SECRET_KEYS if key not in settings.env}
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


def _set_size_and_place(task: Any, own: CoordinatorSpec) -> None:
    """Sets the resources of a task's pod, and its nodes."""
    task.set_cpu_request(own.cpu).set_memory_request(own.memory).set_memory_limit(own.memory)
    for name, value in sorted(own.node_selector.items()):
        kubernetes.add_node_selector(task, name, value)
    known = {"key": "key", "operator": "operator", "value": "value", "effect": "effect"}
    known["tolerationSeconds"] = "toleration_seconds"  # as kfp names it
    for toleration in own.tolerations:
        for unknown in sorted(set(toleration) - set(known)):
            raise SpecError(
                f"`kubernetes.coordinator.tolerations` has the unknown key {unknown}",
                remedy=f"known: {', '.join(known)}",
            )
        kubernetes.add_toleration(task, **{known[key]: value for key, value in toleration.items()})
