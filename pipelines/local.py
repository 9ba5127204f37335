"""The pipeline without a cluster: each of its tasks is a process here, under `kfp.local`."""

from __future__ import annotations

import warnings
from pathlib import Path

from lwfed.types.errors import LwfedError
from pipelines.stages import Work

RUN_ID_ENV = "LWFED_RUN_ID"


class PipelineFailedError(LwfedError):
    """A task of a pipeline ended with an error, which it has printed itself."""


def run_locally(work: Work, *, folder: Path, run_id: str | None = None) -> None:
    """Runs the pipeline of an experiment to its end; what its tasks write goes to standard output.

    Args:
        work: What it trains; its store is a folder or one that this machine reaches, its launcher not Kubernetes.
        folder: Where the tasks' outputs go, a folder per run.
        run_id: What the run is called; None: after the spec and its digest, so that the same spec goes on with its run.

    Raises:
        SpecError: The stages do not fit the spec.
        PipelineFailedError: A task failed.
    """
    from kfp import local

    from pipelines.pipeline import experiment_pipeline

    env = {} if run_id is None else {RUN_ID_ENV: run_id}
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images and of what is Kubernetes' own, which have no part here
        pipeline = experiment_pipeline(work, env=env)
        try:
            pipeline()
        except RuntimeError as error:
            raise PipelineFailedError(
                f"the pipeline of {work.spec.name} failed: {' '.join(str(error).split())}",
                remedy="what its task wrote says why; run it again to go on",
            ) from None
