"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from lwfed.formats import HEADLINES, bytes_text, metric_text, seconds_text


class Display:
    """Takes a run's events and shows them.

    Args:
        console: Where to; live where it is a terminal.
        total_rounds: Rounds of the whole run, for the time left.
    """

    def __init__(self, console: Console, *, total_rounds: int = 0) -> None:
        self._console = console
        self._total = total_rounds
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._stage: dict[str, Any] = {}
        self._round: dict[str, Any] = {}
        self._clients: dict[str, str] = {}
        self._done = 0
        self._trained_s = 0.0
        self._trained = 0
        self._bytes = 0
        self._metrics: dict[str, float] = {}
        self._round_started = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        """Takes an event; unknown kinds are ignored."""
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(values)
        if self._live:
            self._live.update(self._status())

    def warn(self, line: str) -> None:
        """Shows a warning."""
        self("warning", {"message": line})

    def _on_run(self, run: dict[str, Any]) -> None:
        data = run["data"]
        sizes = list(data["clients"].values())
        spread = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        self._say(
            f"[bold]{run['run_id']}[/]  {run['strategy']}, {len(sizes)} clients of {spread} examples, "
            f"{data['num_test']} to test on ({data['source']})"
        )
        if run["parent"]:
            self._say(f"from stage {run['parent']['stage'] - 1} of {run['parent']['run_id']}")

    def _on_checking(self, values: dict[str, Any]) -> None:
        done, total = values["done"], values["total"]
        self._clients = {"": f"reading {values['split']} files {done}/{total}"}
        if self._live is None and (done == total or done % max(1, total // 4) == 0):
            self._say(f"reading {values['split']} files {done}/{total}")

    def _on_warning(self, values: dict[str, Any]) -> None:
        self._say(f"[yellow]warning:[/] {escape(values['message'])}")

    def _on_stage_started(self, values: dict[str, Any]) -> None:
        self._stage = values
        if not values["reused"]:
            rounds = f"{values['rounds']} rounds" if values["rounds"] else "no rounds: blocks are appended untrained"
            self._say(f"[bold]stage {values['stage']}[/]  {rounds}  key {values['key'][:12]}")

    def _on_round_started(self, values: dict[str, Any]) -> None:
        self._round, self._clients = values, {}
        self._round_started = time.monotonic()

    def _on_client_started(self, values: dict[str, Any]) -> None:
        where = f" on GPU {', '.join(values['gpus'])}" if "gpus" in values else ""
        self._clients[values["client"]] = f"{values['client']} starts{where}"
        if self._live is None and "pod" in values:
            self._say(f"  [dim]{values['client']} runs {values['step']} in {values['pod']} on {values['node']}[/]")

    def _on_client_step(self, values: dict[str, Any]) -> None:
        self._clients[values["client"]] = (
            f"{values['client']} step {values['step']}/{values['steps']} loss {values['loss']:.3f}"
        )

    def _on_client_done(self, values: dict[str, Any]) -> None:
        self._clients.pop(values["client"], None)
        if values["failed"]:
            self._say(f"  [red]{values['client']} failed in round {values['round']}:[/] {escape(values['failed'])}")
        elif self._live is None and values["metrics"]:
            metrics = values["metrics"]
            self._say(
                f"  {values['client']}  {metrics['steps']} steps  loss {metrics['loss']:.3f}  "
                f"{bytes_text(metrics['bytes_up'])} up  {seconds_text(metrics['wall_s'])}"
            )

    def _on_client_log(self, values: dict[str, Any]) -> None:
        self._say(f"  [dim]{values['client']}: {escape(values['line'])}[/]")

    def _on_waiting(self, values: dict[str, Any]) -> None:
        self._say(f"  [yellow]{values['client']}[/] {escape(values['line'])}")

    def _on_aggregating(self, values: dict[str, Any]) -> None:
        self._clients = {"": f"aggregating {values['clients']} updates and evaluating"}

    def _on_round(self, record: dict[str, Any]) -> None:
        if self._stage.get("reused"):
            return
        self._done += 1
        self._metrics = record["metrics"]
        self._bytes += sum(c["bytes_up"] + c["bytes_down"] for c in record["clients"].values())
        if self._round.get("round") == record["round"] and self._round.get("stage") == record["stage"]:
            self._trained += 1
            self._trained_s += record["wall_s"]["round"]
        shown = ["train/loss", *(name for name in HEADLINES if name in self._metrics)]
        shown += [
            name for name in self._metrics if name.startswith("federated/") and name.endswith(("R@1", "accuracy"))
        ]
        scores = "  ".join(metric_text(name, self._metrics[name]) for name in shown[:6])
        self._say(
            f"  round {record['round']}/{self._stage.get('rounds', '?')}  {len(record['clients'])} clients  {scores}  "
            f"{seconds_text(record['wall_s']['round'])}"
            + (f"  overhead {seconds_text(record['wall_s']['overhead'])}" if "overhead" in record["wall_s"] else "")
        )
        self._clients = {}

    def _on_stage(self, record: dict[str, Any]) -> None:
        how = "already committed" if record["reused"] else "committed"
        self._say(f"stage {record['stage']} {how}  {record['digest'][:12]}")
        if record["reused"]:
            self._done += record["rounds"]

    def _on_ending(self, values: dict[str, Any]) -> None:
        why = f": {escape(values['reason'])}" if values["reason"] else ""
        self._say(f"[bold]{values['run_id']}[/] {values['status']}{why}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _status(self) -> Text:
        parts = []
        if self._stage and self._round:
            parts.append(f"stage {self._stage['stage']} round {self._round['round']}/{self._stage['rounds']}")
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
