"""The last task: the run's report, its figures, and the address of its model."""

from typing import NamedTuple

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; name your own through `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report(
    spec: str,
    store: str,
    stage: int,
    digest: str,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> NamedTuple("Outputs", [("model_uri", str)]):  # type: ignore[valid-type]  # kfp reads outputs there
    """Writes the run's report and figures, and tells the trackers that it is over.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        stage: The last stage that was trained.
        digest: Digest of its result.

    Returns:
        metrics: The run's final metrics.
        page: The report.
        model_uri: Where the final model's manifest lies.
    """
    from pathlib import Path

    from lwfed.cli import tasks

    done = tasks.report(spec=spec, store=store, stage=stage, digest=digest)
    for name, value in done.metrics.items():
        metrics.log_metric(name.replace("@", "_at_"), value)  # as MLflow spells it
    Path(page.path).write_text(done.html, encoding="utf-8")
    return (done.model_uri,)
