"""The exit task, which always runs: it deletes the Jobs of a failed run and ends the run in its trackers."""

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; set your own with `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def cleanup(spec: str, store: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Ends the Jobs and the MLflow run that a failed run left open.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        status: How the pipeline ended; Kubeflow Pipelines fills it in.
    """
    from lwfed.drive import tasks

    tasks.cleanup(spec=spec, store=store, state=status.state)
