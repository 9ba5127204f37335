"""Tasks: the small JSON values that steps take; the same on a laptop, in a subprocess and in a pod."""

from __future__ import annotations

from typing import Any, Literal

from lwfed.spec.base import Section

Device = Literal["auto", "cpu", "cuda"]


class Place(Section):
    """What a machine adds to a plan: where things lie on it. Nothing here decides a number.

    Attributes:
        root: Folder of the data, or None for built-in data.
        workers: Processes that decode and augment.
        device: Where to compute.
        cache: Folder in which a client keeps frozen blocks between rounds, and what an encoded exchange needs; or None.
    """

    root: str | None = None
    workers: int = 0
    device: Device = "auto"
    cache: str | None = None


class RunTask(Section):
    """Work on a whole run, such as its report.

    Attributes:
        store: URI of the store.
        run_id: The run.
    """

    store: str
    run_id: str
    place: Place = Place()


class PrepareTask(RunTask):
    """What prepares a run where its data are.

    Attributes:
        spec: The experiment, complete.
        fresh: Train again, even where equal work is committed.
        parent: The run it starts from, and the first stage it trains itself.
    """

    spec: dict[str, Any]
    fresh: bool = False
    parent: tuple[str, int] | None = None


class InspectTask(RunTask):
    """A client's look at its own data, where nobody else can see them.

    Attributes:
        client: Its id.
        spec: The experiment, complete.
    """

    client: str
    spec: dict[str, Any]
    parent_pid: int | None = None


class StageTask(RunTask):
    """All rounds of one stage.

    Attributes:
        stage: s, counted from 1.
    """

    stage: int


class RoundTask(Section):
    """Work on one round of one stage.

    Attributes:
        store: URI of the store.
        run_id: The run that asks for it; None: nobody to name.
        stage_key: The stage.
        server_round: r, counted from 1.
        place: Where things lie.
    """

    store: str
    run_id: str | None = None
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


ServerTask = RunTask | RoundTask
"""What the server's pool works on."""
PoolTask = ClientTask | InspectTask
"""What a client works on."""
