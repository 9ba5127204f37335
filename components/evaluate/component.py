"""The final evaluation: the last stage's model on the server's test data."""

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; set your own with `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    spec: str,
    store: str,
    stage: int,
    digest: str,
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Evaluates a stage's result on the server's test data, unless that is done already.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        stage: The stage, counted from 1.
        digest: Digest of its result.

    Returns:
        metrics: The metrics.
        page: The report so far.
    """
    from pathlib import Path

    from lwfed.drive import tasks

    done = tasks.evaluate(spec=spec, store=store, stage=stage, digest=digest)
    for name, value in done.metrics.items():
        metrics.log_metric(name.replace("@", "_at_"), value)  # as in MLflow
    Path(page.path).write_text(done.html, encoding="utf-8")
