"""Tasks: the small JSON values that steps take; the same on a laptop, in a subprocess and in a pod."""

from __future__ import annotations

from typing import Literal

from lwfed.spec.base import Section

Device = Literal["auto", "cpu", "cuda"]


class Place(Section):
    """What a machine adds to a plan: where things lie on it. Nothing here decides a number.

    Attributes:
        root: Folder of the data, or None for built-in data.
        workers: Processes that decode and augment.
        device: Where to compute.
        cache: Folder in which a client keeps frozen blocks between rounds, or None.
    """

    root: str | None = None
    workers: int = 0
    device: Device = "auto"
    cache: str | None = None


class RoundTask(Section):
    """Work on one round of one stage.

    Attributes:
        store: URI of the store.
        stage_key: The stage.
        server_round: r, counted from 1.
        place: Where things lie.
    """

    store: str
    stage_key: str
    server_round: int
    place: Place = Place()


class ClientTask(RoundTask):
    """One client's work on a round.

    Attributes:
        client: Its id.
        parent_pid: The process that asked for it: with its end the work ends too; None: nobody to watch.
    """

    client: str
    parent_pid: int | None = None


class StageTask(Section):
    """All rounds of one stage.

    Attributes:
        run_id: The run it belongs to.
        stage: s, counted from 1.
    """

    store: str
    run_id: str
    stage: int
    place: Place = Place()
