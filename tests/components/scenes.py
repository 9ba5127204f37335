"""What the commands find at Kubeflow Pipelines: a run that failed, a run that goes on, and what their tasks wrote."""

from __future__ import annotations

from pipelines.follow import Pace
from tests.components.kfp_server import State, failing

QUICK = Pace(poll_s=0.05, first_poll_s=0.05, quiet_s=0.2, start_timeout_s=0.7, patience_s=1.0)
"""How often tests look at a run."""
QUORUM = "round 2 of stage 2 has 1 update, below the quorum of 2 -> see why clients failed"
TRACE = f"Traceback (most recent call last):\n  ...\nlwfed.types.errors.QuorumError: {QUORUM}\n"
DIGEST = "ab" * 32


def failed(kfp: State) -> str:
    """Gives the id of a run whose second stage failed."""
    return kfp.add_run(failing("train-stage-2")[-1:], name="mine")


def running(kfp: State) -> tuple[str, str]:
    """Gives the id of a run whose stage 2 goes on, and lwfed's."""
    run_id = kfp.add_run(failing("train-stage-2")[:1])
    return run_id, f"tiny-{run_id[:8]}"
