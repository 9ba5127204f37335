"""How often tests look at runs, and what tasks of theirs write where no recording says it."""

from __future__ import annotations

from pipelines.client.pace import Pace

QUICK = Pace(poll_s=0.05, first_poll_s=0.05, quiet_s=0.2, start_timeout_s=0.7, patience_s=1.0)
"""How often tests look at a run."""
QUORUM = "round 2 of stage 2 has 1 update, below the quorum of 2 -> see why clients failed"
TRACE = f"Traceback (most recent call last):\n  ...\nlwfed.types.errors.QuorumError: {QUORUM}\n"
DIGEST = "ab" * 32
