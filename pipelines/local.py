"""Runs the pipeline without a cluster: each task is a process on this machine, under `kfp.local`."""

from __future__ import annotations

import warnings
from pathlib import Path

from lwfed.types.errors import LwfedError
from pipelines.stages import Work

RUN_ID_ENV = "LWFED_RUN_ID"


class PipelineFailedError(LwfedError):
    """A task of a pipeline ended with an error, which it printed itself."""


def run_locally(work: Work, *, folder: Path, run_id: str | None = None) -> None:
    """Runs the pipeline of an experiment to its end; its tasks' output goes to standard output.

    Args:
        work: The work to train; its store is a folder or reachable from here, and its launcher is not Kubernetes.
        folder: Folder for the tasks' outputs, with a subfolder per run.
        run_id: The run's id; None: from the spec's name and digest, so that the same spec resumes its run.

    Raises:
        SpecError: The stages do not fit the spec.
        PipelineFailedError: A task failed.
    """
    from kfp import local

    from pipelines.pipeline import experiment_pipeline

    env = {} if run_id is None else {RUN_ID_ENV: run_id}
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about images and Kubernetes' settings, which do not apply here
        pipeline = experiment_pipeline(work, env=env)
        try:
            pipeline()
        except RuntimeError as error:
            raise PipelineFailedError(
                f"the pipeline of {work.spec.name} failed: {' '.join(str(error).split())}",
                remedy="see the output of its task for the reason; run it again to continue",
            ) from None
