"""The agent: waits for what runs want of it, does it with the steps of any launcher, says how it ended, waits again.

A thread reads what is wanted and beats; the main thread works. So an agent that trains learns within a step that its
round went on without it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lwfed import environment
from lwfed.agent.beating import Beats
from lwfed.agent.coordinator import Coordinator
from lwfed.agent.judging import Judge
from lwfed.agent.wanted import Wanted
from lwfed.launch.dispatch import run_step
from lwfed.launch.step_process import task_of
from lwfed.round import evaluate_client, train_client
from lwfed.round.workbench import Workbench
from lwfed.run.agents import AgentOutcome, Wants
from lwfed.run.events import ClientStep, Event
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import (
    FINAL_CODES,
    AgentError,
    CheckpointError,
    DeniedError,
    DiskFullError,
    LateError,
    LwfedError,
    PolicyError,
    UnreachableError,
)  # fmt: skip

SETTLED_CODES = FINAL_CODES | {CheckpointError.exit_code, DiskFullError.exit_code, PolicyError.exit_code}
"""Exit codes after which the agent stays and its client has failed; after others, its next process tries again."""
LOOK_S = 0.05
"""Shortest time in seconds between two looks of the thread at its clocks."""
PAUSE_S = 2.0
"""Seconds until work that the store interrupted is begun again."""

PRELOADED = (train_client, evaluate_client)
"""Modules that the first task would wait for."""

Say = Callable[[str], None]
"""Receives lines for the agent's owner."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an agent works.

    Attributes:
        name: Its name: its client, or its place in a pool.
        run_id: The only run that it works for; None: any.
        alone: Whether nothing else can be running under its name.
        idle_s: Seconds without work after which it ends; None: it stays.
    """

    name: str
    run_id: str | None = None
    alone: bool = False
    idle_s: float | None = None


class Agent:
    """An agent.

    Args:
        store: The store; everything it hears and says goes through it.
        settings: How it works.
        judge: Decides on each task, and on the place for it.
        say: Receives lines for its owner.
        emit: Receives the events of its tasks.
    """

    def __init__(
        self, store: Store, *, settings: Settings, judge: Judge, say: Say, emit: Callable[[Event], None]
    ) -> None:
        self._store, self._settings, self._judge, self._say, self._emit = store, settings, judge, say, emit
        self._bench = Workbench(store)
        self._current: Mapping[str, Wants] = {}
        self._beats: Beats | None = None
        self._serving = ""
        self._news, self._over = threading.Event(), threading.Event()
        self._fatal: LwfedError | None = None
        self._seen = False

    def serve(self) -> None:
        """Works until its run is over, it has been idle for too long, or it fails in a way that a new process may mend.

        Raises:
            AgentError: Another agent of the same name is at work.
            DeniedError: The store refuses the agent's credentials, or its clock.
            LwfedError: A client's work failed, and a new process may succeed.
        """
        idle_since = time.monotonic()
        with self._listening():
            while self._fatal is None:
                call = next((wants for wants in self._calls() if self._open(wants)), None)
                if call is not None:
                    self._serve(call)
                    idle_since = time.monotonic()
                    continue
                if self._run_is_over() or self._has_idled(time.monotonic() - idle_since):
                    return
                self._news.wait(timeout=1.0)
                self._news.clear()
            raise self._fatal

    def _calls(self) -> list[Wants]:
        return [wants for _, wants in sorted(self._current.items()) if self._settings.name in wants.work]

    def _open(self, wants: Wants) -> list[str]:
        """Returns the clients of a call that this agent still has to work for."""
        clients = wants.work.get(self._settings.name, [])
        if self._beats is None or self._serving != wants.run_id or self._beats.last.call != wants.call:
            return clients
        done = self._beats.last.outcomes
        return [client for client in clients if client not in done or done[client].again]

    def _serve(self, wants: Wants) -> None:
        """Works for a call's clients, in turn."""
        try:
            beats = self._beats_of(wants.run_id)
        except UnreachableError as error:
            self._pause(error)
            return
        if beats.last.call != wants.call:
            beats.say(call=wants.call, outcomes={}, tries={}, client="", step=0, steps=0)
        tasks = wants.tasks_of(self._settings.name)
        for client in self._open(wants):
            if not self._is_wanted(wants) or self._fatal is not None:
                return
            try:
                self._serve_client(wants, client, tasks[client], beats)
            except UnreachableError as error:
                self._pause(error)
                return

    def _serve_client(self, wants: Wants, client: str, values: dict[str, Any], beats: Beats) -> None:
        tries = beats.last.tries.get(client, 0) + 1
        beats.say(now=True, client=client, step=0, steps=0, tries={**beats.last.tries, client: tries})
        started, what = time.monotonic(), _what(wants.step, values)
        self._say(f"{client}: {what}")
        try:
            task = self._judge.allow(wants, task_of(wants.step, values), bench=self._bench)
            with environment.ranks(use_gpu=task.place.device != "cpu"):
                run_step(wants.step, task, bench=self._bench, emit=self._reporter(wants, client, beats, since=started))
        except LateError as error:
            beats.say(now=True, client="", note=str(error))
            self._say(f"{client}: {error}")
            return
        except UnreachableError as error:
            beats.say(tries={**beats.last.tries, client: tries - 1})
            if isinstance(error, DeniedError) and self._fatal is None:  # it may be allowed to say so
                with suppress(LwfedError):
                    beats.say(now=True, client="", note=str(error))
            raise
        except Exception as error:
            self._fail(wants, client, beats, error, tries=tries)
            return
        if not self._is_wanted(wants):
            beats.say(note=str(_late(client, what)))
            self._say(f"{client}: {_late(client, what)}")
        beats.end_task(client, AgentOutcome())
        self._say(f"{client}: {what}: done in {time.monotonic() - started:.1f} s")

    def _fail(self, wants: Wants, client: str, beats: Beats, error: Exception, *, tries: int) -> None:
        """Says why a client's work failed; raises the error if a new process may succeed."""
        known = isinstance(error, LwfedError)
        code = error.exit_code if isinstance(error, LwfedError) else 1
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        settled = code in SETTLED_CODES or tries > wants.retries
        beats.end_task(client, AgentOutcome(exit_code=code, reason=reason, again=not settled))
        self._say(f"{client}: failed: {reason}" + ("" if settled else "; a new process tries again"))
        if not settled:
            raise error

    def _reporter(self, wants: Wants, client: str, beats: Beats, *, since: float) -> Callable[[Event], None]:
        """Returns a receiver of a task's events, which ends work that is not wanted any longer."""

        def report(event: Event) -> None:
            self._emit(event)
            if isinstance(event, ClientStep):
                loss = event.loss if math.isfinite(event.loss) else 0.0
                beats.say(step=event.step, steps=event.steps, loss=loss)
            if self._fatal is not None:
                raise self._fatal
            if not self._is_wanted(wants):
                raise _late(client, _what(wants.step, wants.task))
            self._judge.allow_time(time.monotonic() - since)

        return report

    def _is_wanted(self, wants: Wants) -> bool:
        now = self._current.get(wants.run_id)
        return now is not None and now.call == wants.call

    def _beats_of(self, run_id: str) -> Beats:
        if self._beats is None or self._serving != run_id:
            self._leave()
            self._beats = Beats(self._store, run_id, self._settings.name, alone=self._settings.alone)
            self._serving = run_id
        return self._beats

    def _leave(self) -> None:
        if self._beats is not None and not isinstance(self._fatal, AgentError | DeniedError):
            with suppress(LwfedError):
                self._beats.say(now=True, client="", ended=True)
        self._beats = None

    def _run_is_over(self) -> bool:
        run_id = self._settings.run_id
        return run_id is not None and self._seen and run_id not in self._current

    def _has_idled(self, seconds: float) -> bool:
        return self._settings.idle_s is not None and seconds > self._settings.idle_s

    def _pause(self, error: UnreachableError) -> None:
        if isinstance(error, DeniedError):
            self._fatal = error
            return
        self._say(f"{error.problem}; trying again")
        self._over.wait(PAUSE_S)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Reads what is wanted, and beats, in a thread while the body runs."""
        thread = threading.Thread(target=self._listen, name="agent", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(timeout=2 * PAUSE_S)
            self._leave()

    def _refuse_other_credentials(self) -> None:
        """Raises DeniedError if the credentials are not the agent's own: nobody else may read its beats."""
        self._store.read_ref(paths.beats("none", self._settings.name))

    def _listen(self) -> None:
        wanted = Wanted(self._store, self._settings.name, self._settings.run_id)
        coordinator = Coordinator(self._store, say=self._say)
        look_at, failing, known = 0.0, False, False
        while not self._over.is_set():
            beats = self._beats
            try:
                if not known:
                    self._refuse_other_credentials()
                    known = True
                if time.monotonic() >= look_at:
                    wanted.look()
                    self._current = dict(wanted.current)
                    self._seen = self._seen or bool(self._current)
                    look_at = time.monotonic() + wanted.poll_s * random.uniform(0.7, 1.3)
                    self._news.set()
                    coordinator.watch(self._current.get(self._serving))
                if beats is not None and beats.due_in_s == 0:
                    beats.write()
                failing = False
            except DeniedError as error:
                self._fatal = error
                self._news.set()
                return
            except UnreachableError as error:
                if not failing:
                    self._say(f"{error.problem}; trying again")
                failing = True
                look_at = time.monotonic() + PAUSE_S
            except LwfedError as error:
                self._fatal = error
                self._news.set()
                return
            due_s = min(look_at - time.monotonic(), beats.due_in_s if beats is not None else math.inf)
            self._over.wait(max(LOOK_S, PAUSE_S if failing else due_s))


def _what(step: str, values: Mapping[str, Any]) -> str:
    """Describes a task, such as `train-client of round 3, stage 1a2b3c4d`."""
    known = set(values) >= {"stage_key", "server_round"}
    return f"{step} of round {values['server_round']}, stage {values['stage_key'][:8]}" if known else step


def _late(client: str, what: str) -> LateError:
    return LateError(f"{client} is too late: {what} went on without it", remedy="a later round takes it in again")
