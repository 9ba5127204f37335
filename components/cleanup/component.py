"""The task that runs whatever happens: a failed run leaves no Jobs behind, and none that seems to go on."""

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; name your own through `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def cleanup(spec: str, store: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Ends what a failed run leaves: its Jobs, and its run in MLflow.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        status: How the pipeline ended; Kubeflow Pipelines fill it in.
    """
    from lwfed.drive import tasks

    tasks.cleanup(spec=spec, store=store, state=status.state)
