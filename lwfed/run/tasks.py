"""Tasks: the small JSON inputs of steps, the same on a laptop, in a subprocess and in a pod."""

from __future__ import annotations

from typing import Any, Literal

from lwfed.spec.base import Section

Device = Literal["auto", "cpu", "cuda"]


class Place(Section):
    """Settings of one machine: paths, workers and device. Nothing here affects a result.

    Attributes:
        root: Folder of the data, or None for built-in data.
        workers: Number of threads that decode and augment ahead.
        device: The device to compute on.
        cache: Folder in which clients keep frozen blocks, and files for an encoded exchange, between rounds; or None.
        shared: Folder for what serves any run: digests of files, and files fetched from a bucket; None: the machine's
            cache folder.
    """

    root: str | None = None
    workers: int = 0
    device: Device = "auto"
    cache: str | None = None
    shared: str | None = None


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
    """Preparing a run on the machine that has its data.

    Attributes:
        spec: The complete experiment.
        fresh: Train again, even if equal work is committed.
        parent: The run it starts from, and the first stage it trains itself.
    """

    spec: dict[str, Any]
    fresh: bool = False
    parent: tuple[str, int] | None = None


class InspectTask(RunTask):
    """A client's inspection of its own data, which no other machine can see.

    Attributes:
        client: Its id.
        spec: The complete experiment.
    """

    client: str
    spec: dict[str, Any]
    parent_pid: int | None = None


class AgentTask(RunTask):
    """A pod's stay for a stage, as an agent that waits for the stage's rounds.

    Attributes:
        client: The agent's name, of a place in its pool.
        stage_key: The stage.
        idle_s: Seconds without work after which it ends; None: it stays.
    """

    client: str
    stage_key: str
    idle_s: float | None = None


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
        run_id: The run that the work belongs to, or None if unknown.
        stage_key: The stage.
        server_round: r, counted from 1.
        place: Settings of this machine.
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
        measure: Whether the FLOPs and bytes of its first step are measured.
        parent_pid: The process that started the work; the work ends when that process ends. None: no such process.
    """

    client: str
    measure: bool = False
    parent_pid: int | None = None


ServerTask = RunTask | RoundTask
"""Tasks of the server's pool."""
PoolTask = ClientTask | InspectTask
"""Tasks of a client."""
PodTask = PoolTask | ServerTask
"""Tasks of a Job's pods."""
