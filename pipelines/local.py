"""The pipeline without a cluster: each of its tasks is a process here, under `kfp.local`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from lwfed.run.parent import Parent
from lwfed.spec.run import RunSpec
from lwfed.types.errors import LwfedError

RUN_ID_ENV = "LWFED_RUN_ID"


class PipelineFailedError(LwfedError):
    """A task of a pipeline ended with an error, which it has printed itself."""


def run_locally(
    spec: RunSpec,
    *,
    folder: Path,
    stages: Sequence[int] | None = None,
    parent: Parent | None = None,
    fresh: bool = False,
    run_id: str | None = None,
) -> None:
    """Runs the pipeline of an experiment to its end; what its tasks write goes to standard output.

    Args:
        spec: The experiment; its store is a folder or one that this machine reaches, its launcher not Kubernetes.
        folder: Where the tasks' outputs go, a folder per run.
        stages: The stages to train; None: all, or from the parent's on.
        parent: The run it starts from, and the first stage it trains; None for none.
        fresh: Train again, even where equal work is committed.
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
        pipeline = experiment_pipeline(spec, stages=stages, parent=parent, fresh=fresh, env=env)
        try:
            pipeline()
        except RuntimeError as error:
            raise PipelineFailedError(
                f"the pipeline of {spec.name} failed: {' '.join(str(error).split())}",
                remedy="what its task wrote says why; run it again to go on",
            ) from None
