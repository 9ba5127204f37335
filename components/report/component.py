"""The last task: the run's report, its final metrics, and its model."""

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; set your own with `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report(
    spec: str,
    store: str,
    stage: int,
    digest: str,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    model: dsl.Output[dsl.Model],
) -> None:
    """Writes the run's report and figures, ends the run in its trackers, and records the model.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        stage: The last trained stage.
        digest: Digest of its result.

    Returns:
        metrics: The run's final metrics.
        page: The report.
        model: The final model: the URI of its weights in the store, their digest, and its version in MLflow.
    """
    import json
    from pathlib import Path

    from lwfed.drive import tasks

    done = tasks.report(spec=spec, store=store, stage=stage, digest=digest)
    for name, value in done.metrics.items():
        metrics.log_metric(name.replace("@", "_at_"), value)  # as in MLflow
    Path(page.path).write_text(done.html, encoding="utf-8")
    model.metadata.update(done.model)  # its URI stays Kubeflow's own, since one outside the pipeline's root is refused
    Path(model.path).write_text(json.dumps(done.model, indent=2), encoding="utf-8")
