"""A round of many clients whose training is stubbed: everything else, from the cohort to the record, is the real thing.

It gives CPU seconds and the store's requests by part of the round, and the sizes of what is written, so that the cost
of a coordinator is known as a function of the number of clients.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwfed.launch.in_process import InProcess
from lwfed.run import runs
from lwfed.run.events import Aggregating, ClientDone, Emit, Event, RoundDone, RoundStarted
from lwfed.run.launcher import Outcome
from lwfed.run.runs import Options
from lwfed.run.tasks import ClientTask, PoolTask, ServerTask
from lwfed.spec.load import build_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.blocks import read_block, write_block
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.types.canonical import by_line
from lwfed.types.records import RunRecord
from tests.events import ignore
from tests.tiny import ONE_STAGE, VALUES

COUNTED = (
    "read_ref",
    "read_ref_if_changed",
    "write_ref",
    "size",
    "list",
    "folders",
    "get",
    "put",
    "delete",
    "read_into",
    "read_parts",
)
METRICS = {
    "steps": 3, "loss": 3.4123456789, "loss_first": 3.5123456789, "wall_s": 12.34567891, "bytes_up": 123456789,
    "bytes_down": 123456789, "bytes_down_frozen": 0, "peak_rss_bytes": 1234567890,
    "prefix": {"image": "kept", "text": "kept"}, "prefix_cache_bytes": 123456789,
}  # fmt: skip
"""Metrics of a client, as long as real ones."""


class CountingLocalStore:
    """A folder that counts its requests, and its keys deleted, by part of the round."""

    def __init__(self, store: LocalStore) -> None:
        self._store, self.part = store, "prepare"
        self.requests: dict[str, Counter[str]] = defaultdict(Counter)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in COUNTED:
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.requests[self.part][name] += len(args) if name == "delete" else 1
            return found(*args, **kwargs)

        return counted

    def has(self, key: str) -> bool:
        """Whether an object exists, as `Store.has`."""
        return self.size(key) is not None


@dataclass
class Parts:
    """CPU seconds and requests of each part of the rounds."""

    store: CountingLocalStore
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _since: float = field(default_factory=time.process_time)

    def enter(self, part: str) -> str:
        """Begins a part; returns the one before."""
        now, before = time.process_time(), self.store.part
        self.seconds[before] += now - self._since
        self.store.part, self._since = part, now
        return before

    def hear(self, event: Event) -> None:
        """Takes the beginnings of parts from a run's events."""
        match event:
            case RoundStarted():
                self.enter("begin")
            case ClientDone():
                self.enter("accept")
            case Aggregating():
                self.enter("aggregate")
            case RoundDone():
                self.enter("prune")


class Stubbed(InProcess):
    """The launcher in this process, whose clients send the global model back without training."""

    def __init__(self, store: Any, parts: Parts) -> None:
        super().__init__(store)
        self._store, self._parts = store, parts

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Writes each client's update, and yields its outcome."""
        assert step == "train-client"
        plain = self._store._store
        self._parts.enter("clients")
        for task in tasks:
            assert isinstance(task, ClientTask)
            ctx = self.bench.round(task)
            start = read_checkpoint(plain, paths.round_checkpoint(ctx.key, ctx.server_round - 1))
            assert start is not None
            folder, blocks = paths.updates(ctx.key, ctx.server_round, task.client), {}
            for unit in ctx.plan.work_of(task.client).trained:
                theta = read_block(plain, block_key(start.blocks[unit]), start.blocks[unit])
                blocks[unit] = write_block(plain, theta, key=folder)
            update = {
                "client": task.client, "num_examples": 4, "digest": f"{ctx.server_round:064x}",
                "blocks": {unit: block.to_values() for unit, block in blocks.items()},
                "metrics": {"num_examples": 4, **METRICS},
            }  # fmt: skip
            plain.write_ref(paths.update(ctx.key, ctx.server_round, task.client), update)
            self._parts.enter("collect")
            yield Outcome(task.client)
            self._parts.enter("clients")
        self._parts.enter("accept")

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Aggregates for real."""
        self._parts.enter("aggregate")
        super().server(step, task, emit=emit)
        self._parts.enter("commit")


@dataclass(frozen=True)
class Measured:
    """What rounds cost.

    Attributes:
        prepare_s: CPU seconds of draft and prepare.
        seconds: Part -> CPU seconds per round.
        requests: Part -> kind -> requests per round.
        sizes: Object -> bytes.
        tensors: Number of a client's tensors; `units`: of its blocks; `update_bytes`: of their files.
    """

    prepare_s: float
    seconds: dict[str, float]
    requests: dict[str, dict[str, float]]
    sizes: dict[str, int]
    tensors: int
    units: int
    update_bytes: int


def measure_rounds(
    folder: str, *, clients: int, cohort: int, rounds: int = 2, overrides: Sequence[str] = (), say: Callable = ignore
) -> Measured:
    """Runs rounds of `cohort` of `clients` clients of a tiny model.

    Args:
        folder: Where the store goes.
        clients: N.
        cohort: Clients per round.
        rounds: Number of rounds.
        overrides: Further keys of the spec.
        say: Receives the run's events.
    """
    store = CountingLocalStore(LocalStore(folder))
    wanted = [
        *ONE_STAGE, f"stages.rounds=[{rounds}]", f"federation.num_clients={clients}", "training.batch_size=2",
        f"federation.fraction_fit={cohort / clients}", f"data.shapes.train={clients * 4}", f"store.uri={folder}",
        "evaluation.every=1000", *overrides,
    ]  # fmt: skip
    spec = build_spec(VALUES, overrides=wanted)
    began = time.process_time()
    run = prepare(draft(spec, store=store, options=Options()), store=store, emit=ignore)
    prepared = time.process_time()
    parts = Parts(store)

    def emit(event: Event) -> None:
        parts.hear(event)
        say(event)

    run_stages(run, launcher=Stubbed(store, parts), store=store, emit=emit, cache=None)
    parts.enter("end")
    return _measured(run, parts, rounds=rounds, prepare_s=prepared - began)


def _measured(run: RunRecord, parts: Parts, *, rounds: int, prepare_s: float) -> Measured:
    store = parts.store._store
    run = runs.read_run(store, run.run_id)
    key = run.stages[-1].key
    objects = {
        "run.json": paths.run(run.run_id), "plan.json": paths.stage_plan(key), "round.json": paths.round_task(key, 2),
        "accepted.json": paths.accepted(key, 2), "record.json": paths.round_record(key, 2),
    }  # fmt: skip
    sizes = {name: len(by_line(store.read_ref(ref))) for name, ref in objects.items()}
    checkpoint = read_checkpoint(store, paths.round_checkpoint(key, 1))
    assert checkpoint is not None
    trained = [checkpoint.blocks[unit] for unit in runs.plans_of(run)[-1].trained]
    return Measured(
        prepare_s=prepare_s,
        seconds={part: seconds / rounds for part, seconds in parts.seconds.items() if part not in ("prepare", "end")},
        requests={
            part: {kind: count / rounds for kind, count in kinds.items()}
            for part, kinds in parts.store.requests.items()
            if part not in ("prepare", "end")
        },
        sizes=sizes,
        tensors=sum(len(block.tensors) for block in trained),
        units=len(trained),
        update_bytes=sum(block.nbytes for block in trained),
    )
