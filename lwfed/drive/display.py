"""Shows a run's progress: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Self, assert_never

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from lwfed.formats import HEADLINES, bytes_text, lacks_text, left_out_text, metric_text, seconds_text
from lwfed.plan.gates import EFFECTIVE_MOVEMENT
from lwfed.run.events import (
    Aggregating,
    Checking,
    ClientDone,
    ClientLog,
    ClientStarted,
    ClientStep,
    ClientWaiting,
    Event,
    Fetching,
    Hashing,
    OverheadMeasured,
    RoundDone,
    RoundStarted,
    RunEnding,
    RunStarted,
    StageDone,
    StageStarted,
    Summarised,
    Warning,
)
from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import RoundRecord


class Display:
    """Shows a run's events.

    Args:
        console: The console; a terminal gets a live line.
        total_rounds: Rounds of the whole run, to estimate the time left.
    """

    def __init__(self, console: Console, *, total_rounds: int = 0) -> None:
        self._console = console
        self._total = total_rounds
        self._most = ""
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._stage: StageStarted | None = None
        self._round: RoundStarted | None = None
        self._clients: dict[str, str] = {}
        self._done = 0
        self._trained_s = 0.0
        self._trained = 0
        self._bytes = 0
        self._round_started = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        match event:
            case RunStarted(record=run):
                self._on_run(run)
            case Checking(split=split, done=done, total=total):
                self.files(f"reading {split} files", done, total)
            case Fetching(done=done, total=total):
                self.files("fetching data files", done, total)
            case Hashing(done=done, total=total):
                self.files("hashing data files", done, total)
            case Warning(message=message):
                self._say(f"[yellow]warning:[/] {escape(message)}")
            case StageStarted():
                self._on_stage_started(event)
            case RoundStarted():
                self._round, self._clients = event, {}
                self._round_started = time.monotonic()
            case ClientStarted():
                self._on_client_started(event)
            case ClientStep(client=client, step=step, steps=steps, loss=loss):
                self._clients[client] = f"{client} step {step}/{steps} loss {loss:.3f}"
            case ClientWaiting(client=client, line=line):
                self._say(f"  [yellow]{client}[/] {escape(line)}")
            case ClientLog(client=client, line=line):
                self._say(f"  [dim]{client}: {escape(line)}[/]")
            case ClientDone():
                self._on_client_done(event)
            case Aggregating(clients=count):
                self._clients = {"": f"aggregating {count} updates and evaluating"}
            case RoundDone(record=record):
                self._on_round(record)
            case StageDone(record=record):
                self._on_stage(record)
            case RunEnding(run_id=run_id, status=status, reason=reason):
                self._say(f"[bold]{run_id}[/] {status}{f': {escape(reason)}' if reason else ''}")
            case OverheadMeasured() | Summarised():
                pass  # shown in the round's line, and printed by the command
            case _:
                assert_never(event)
        if self._live:
            self._live.update(self._status())

    def warn(self, line: str) -> None:
        """Shows a warning."""
        self(Warning(message=line))

    def files(self, what: str, done: int, total: int) -> None:
        """Shows how many of some files are done, such as `hashing data files 3/12`."""
        self._clients = {"": f"{what} {done}/{total}"}
        if self._live:
            self._live.update(self._status())
        elif done == total or done % max(1, total // 4) == 0:
            self._say(f"{what} {done}/{total}")

    def _on_run(self, run: RunRecord) -> None:
        sizes = list(run.data.clients.values())
        spread = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        validation = f", {run.data.num_validation} for validation" if run.data.num_validation else ""
        self._say(
            f"[bold]{run.run_id}[/]  {run.strategy}, {len(sizes)} clients with {spread} examples each, "
            f"{run.data.num_test} test examples{validation} ({run.data.source})"
        )
        self._most = "at most " if (run.spec.get("stages") or {}).get("gate") else ""
        if run.data.left_out:
            self._say(left_out_text(run.data.left_out))
        for line in lacks_text(run.data.lacks, run.data.clients):
            self._say(line)
        if run.parent:
            self._say(f"from stage {run.parent.stage - 1} of {run.parent.run_id}")

    def _on_stage_started(self, event: StageStarted) -> None:
        self._stage = event
        if not event.reused:
            counted = f"{self._most}{event.rounds} rounds"
            rounds = counted if event.rounds else "no rounds: its blocks are appended untrained"
            self._say(f"[bold]stage {event.stage}[/]  {rounds}  key {event.key[:12]}")

    def _on_client_started(self, event: ClientStarted) -> None:
        where = f" on GPU {', '.join(event.gpus)}" if event.gpus else ""
        self._clients[event.client] = f"{event.client} starts{where}"
        if self._live is None and event.pod:
            on = f" on {event.node}" if event.node else ""
            self._say(f"  [dim]{event.client} runs {event.step} in {escape(event.pod)}{on}[/]")

    def _on_client_done(self, event: ClientDone) -> None:
        self._clients.pop(event.client, None)
        if event.failed:
            self._say(f"  [red]{event.client} failed in round {event.round}:[/] {escape(event.failed)}")
        elif self._live is None and event.metrics:
            metrics = event.metrics
            self._say(
                f"  {event.client}  {metrics.steps} steps  loss {metrics.loss:.3f}  "
                f"{bytes_text(metrics.bytes_up)} up  {seconds_text(metrics.wall_s)}"
            )

    def _on_round(self, record: RoundRecord) -> None:
        stage, begun = self._stage, self._round
        if stage is not None and stage.reused:
            return
        self._done += 1
        self._bytes += sum(client.bytes_up + client.bytes_down for client in record.clients.values())
        if begun is not None and (begun.stage, begun.round) == (record.stage, record.round):
            self._trained += 1
            self._trained_s += record.wall_s["round"]
        metrics = record.metrics
        shown = ["train/loss", *(name for name in (EFFECTIVE_MOVEMENT, *HEADLINES) if name in metrics)]
        shown += [name for name in metrics if name.startswith("federated/") and name.endswith(("R@1", "accuracy"))]
        scores = "  ".join(metric_text(name, metrics[name]) for name in shown[:6])
        self._say(
            f"  round {record.round}/{stage.rounds if stage else '?'}  {len(record.clients)} clients  {scores}  "
            f"{seconds_text(record.wall_s['round'])}"
            + (f"  overhead {seconds_text(record.wall_s['overhead'])}" if "overhead" in record.wall_s else "")
        )
        self._clients = {}

    def _on_stage(self, record: StageRecord) -> None:
        how = "already committed" if record.reused else "committed"
        early = record.result_round not in (None, record.rounds)
        chosen = f"  round {record.result_round} of {record.rounds}" if early else ""
        self._say(f"stage {record.stage} {how}  {record.digest[:12]}{chosen}")
        if record.start_s and not record.reused:
            parts = ", ".join(f"{name.replace('_', ' ')} {seconds_text(s)}" for name, s in record.start_s.items())
            self._say(f"  [dim]its first step came after {seconds_text(sum(record.start_s.values()))}: {parts}[/]")
        planned = record.rounds if self._stage is None else self._stage.rounds
        self._done += planned if record.reused else planned - record.rounds

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _status(self) -> Text:
        parts = []
        if self._stage and self._round:
            parts.append(f"stage {self._stage.stage} round {self._round.round}/{self._stage.rounds}")
        parts += list(self._clients.values())[:4]
        if self._bytes:
            parts.append(f"{bytes_text(self._bytes)} moved")
        left = self._time_left()
        if left is not None:
            parts.append(f"about {seconds_text(left)} left")
        return Text("  |  ".join(parts), style="cyan", no_wrap=True, overflow="ellipsis")

    def _time_left(self) -> float | None:
        if not self._trained or not self._total:
            return None
        each = self._trained_s / self._trained
        spent = time.monotonic() - self._round_started if self._clients else 0.0
        return max(0.0, each * (self._total - self._done) - min(spent, each))
