"""A stage: the task is a small coordinator that runs the rounds and starts the clients' pods."""

from typing import NamedTuple

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; set your own with `components.building.at`."""
PASSTHROUGHS = [
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
]
"""Settings of the task that apply to the clients' pods whose pool does not set its own, and not to the task's own pod;
its environment applies to both."""


@dsl.component(
    base_image=IMAGE, packages_to_install=[], install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS
)
def train_stage(
    spec: str,
    store: str,
    stage: int,
    plan_digest: str,
    input_digest: str,
    data_version: str,
    code_version: str,
    resources: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> NamedTuple("Outputs", [("digest", str)]):  # type: ignore[valid-type]  # kfp reads outputs there
    """Runs the rounds of a stage that are not committed yet.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        stage: The stage, counted from 1.
        plan_digest: Digest of the stage's plan; empty: not checked.
        input_digest: Digest of the checkpoint from which it starts; empty for the first stage.
        data_version: As returned by `prepare`.
        code_version: As returned by `prepare`.
        resources: Resources, tolerations, node selector and affinity of the task, for clients' pods.

    Returns:
        metrics: Metrics after the last round.
        page: The report so far.
        digest: Digest of the stage's checkpoint.
    """
    from dataclasses import asdict
    from pathlib import Path

    from lwfed.drive import tasks

    done = tasks.train_stage(
        spec=spec,
        store=store,
        stage=stage,
        plan_digest=plan_digest,
        input_digest=input_digest,
        data_version=data_version,
        code_version=code_version,
        resources=asdict(resources),
    )
    for name, value in done.metrics.items():
        metrics.log_metric(name.replace("@", "_at_"), value)  # as in MLflow
    Path(page.path).write_text(done.html, encoding="utf-8")
    return (done.digest,)
