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
from lwfed.launch.worker import release_memory
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
)

SETTLED_CODES = FINAL_CODES | {CheckpointError.exit_code, DiskFullError.exit_code, PolicyError.exit_code}
"""Exit codes after which the agent stays and its client has failed; after others, its next process tries again."""
LOOK_S = 0.05
"""Shortest time in seconds between two looks of the thread at its clocks."""
PAUSE_S = 2.0
"""Seconds until work that the store interrupted is begun again."""
QUIET_S = 60.0
"""Troubles with the store that are less than so many seconds apart are one outage."""

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
        self._bench = Workbench(store, emit=emit)
        self._current: Mapping[str, Wants] = {}
        self._beats: Beats | None = None
        self._serving = self._content = ""
        self._news, self._over = threading.Event(), threading.Event()
        self._fatal: Exception | None = None
        self._seen = False
        self._trouble_at = -math.inf

    def serve(self) -> None:
        """Works until its run is over, it has been idle for too long, or it fails in a way that a new process may fix.

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
                if self._serving not in self._current:
                    self._leave()
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
        except OSError as error:
            self._pause(error)
            return
        self._content = wants.content
        if beats.last.call != wants.call:
            beats.begin_call(wants.call)
        tasks = wants.tasks_of(self._settings.name)
        for client in self._open(wants):
            if not self._is_wanted(wants, client) or self._fatal is not None:
                return
            try:
                self._serve_client(wants, client, tasks[client], beats)
            except UnreachableError as error:
                beats.say(client="", note=f"{client}: {error.problem}; trying again")
                self._pause(error)
                return
            finally:
                release_memory()

    def _serve_client(self, wants: Wants, client: str, values: dict[str, Any], beats: Beats) -> None:
        before = beats.last.tries.get(client, 0)
        started, what = time.monotonic(), _what(wants.step, values)
        if before > wants.retries:  # its processes ended without a word
            died = LwfedError(f"its agent died {before} times at this work", remedy="look at the log of its machine")
            self._fail(wants, client, beats, died, tries=before)
            return
        beats.say(now=True, client=client, step=0, steps=0, tries={**beats.last.tries, client: before + 1})
        self._say(f"{client}: {what}")
        try:
            task = self._judge.allow(wants, task_of(wants.step, values), bench=self._bench)
            with environment.ranks(use_gpu=task.place.device != "cpu"):
                run_step(wants.step, task, bench=self._bench, emit=self._reporter(wants, client, beats, since=started))
        except LateError as error:
            beats.say(now=True, client="", note=str(error))
            self._say(f"{client}: {error}")
            return
        except (UnreachableError, KeyboardInterrupt) as error:
            beats.say(tries={**beats.last.tries, client: before})
            if isinstance(error, DeniedError) and self._fatal is None:  # it may be allowed to say so
                beats.say(now=True, client="", note=str(error))
            raise
        except Exception as error:
            self._fail(wants, client, beats, error, tries=before + 1)
            return
        if not self._is_wanted(wants, client):
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
            if not self._is_wanted(wants, client):
                raise _late(client, _what(wants.step, wants.task))
            self._judge.allow_time(time.monotonic() - since)

        return report

    def _is_wanted(self, wants: Wants, client: str) -> bool:
        """Whether a client's work is asked for now, by this call or by a later one for the same work."""
        now = self._current.get(wants.run_id)
        return now is not None and now.content == wants.content and client in now.work.get(self._settings.name, ())

    def _follow_call(self) -> None:
        """Goes on for a new call that asks for what is at work: the coordinator was started again."""
        now, beats = self._current.get(self._serving), self._beats
        if now is None or beats is None or not beats.last.client or beats.last.call == now.call:
            return
        if now.content == self._content and beats.last.client in now.work.get(self._settings.name, ()):
            beats.begin_call(now.call)

    def _beats_of(self, run_id: str) -> Beats:
        if self._beats is None or self._serving != run_id:
            self._leave()
            self._beats = Beats(self._store, run_id, self._settings.name, alone=self._settings.alone)
            self._serving = run_id
        return self._beats

    def _leave(self) -> None:
        """Says that it does nothing more for the run that it served."""
        beats, self._beats, self._serving = self._beats, None, ""
        if beats is not None and not isinstance(self._fatal, AgentError | DeniedError):
            with suppress(LwfedError):
                beats.say(now=True, client="", ended=True)

    def _run_is_over(self) -> bool:
        run_id = self._settings.run_id
        return run_id is not None and self._seen and run_id not in self._current

    def _has_idled(self, seconds: float) -> bool:
        return self._settings.idle_s is not None and seconds > self._settings.idle_s

    def _pause(self, error: OSError) -> None:
        if isinstance(error, DeniedError):
            self._fatal = error
            return
        self._report_trouble(error)
        self._over.wait(PAUSE_S)

    def _report_trouble(self, error: OSError) -> None:
        """Tells the owner of an outage, in one line however long it lasts and whoever finds it."""
        quiet_s, self._trouble_at = time.monotonic() - self._trouble_at, time.monotonic()
        if quiet_s > QUIET_S:
            self._say(f"{error.problem if isinstance(error, LwfedError) else error}; trying again")

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
        wanted = Wanted(self._store, self._settings.run_id)
        coordinator = Coordinator(self._store, say=self._say)
        look_at, known = 0.0, False
        while not self._over.is_set():
            beats, failing = self._beats, False
            try:
                if not known:
                    self._refuse_other_credentials()
                    known = True
                if time.monotonic() >= look_at:
                    self._look(wanted, coordinator)
                    look_at = time.monotonic() + wanted.poll_s * random.uniform(0.7, 1.3)
                    if beats is not None:
                        beats.pace(wanted.poll_s)
                if beats is not None and beats.due_in_s == 0:
                    beats.write()
            except DeniedError as error:
                self._fatal = error
                self._news.set()
                return
            except OSError as error:  # the store is unreachable or full
                self._report_trouble(error)
                look_at, failing = time.monotonic() + PAUSE_S, True
            except Exception as error:
                self._fatal = error
                self._news.set()
                return
            due_s = min(look_at - time.monotonic(), beats.due_in_s if beats is not None else math.inf)
            self._over.wait(max(LOOK_S, PAUSE_S if failing else due_s))

    def _look(self, wanted: Wanted, coordinator: Coordinator) -> None:
        wanted.look()
        self._current = dict(wanted.current)
        self._seen = self._seen or bool(self._current)
        self._follow_call()
        self._news.set()
        coordinator.watch(self._current.get(self._serving))


def _what(step: str, values: Mapping[str, Any]) -> str:
    """Describes a task, such as `train-client of round 3, stage 1a2b3c4d`."""
    known = set(values) >= {"stage_key", "server_round"}
    return f"{step} of round {values['server_round']}, stage {values['stage_key'][:8]}" if known else step


def _late(client: str, what: str) -> LateError:
    return LateError(f"{client} is too late: {what} went on without it", remedy="a later round takes it in again")
