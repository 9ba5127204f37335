"""A whole experiment that takes a second: a ViT of 4 patches, a DistilBERT of two layers, 24 scenes, two clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lwfed.launch.in_process import InProcess
from lwfed.plan.stages import StagePlan
from lwfed.round.train_client import train_client
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.events import Event
from lwfed.run.launcher import Launcher
from lwfed.run.runs import Options
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask, Place, RoundTask
from lwfed.spec.load import build_spec
from lwfed.spec.run import RunSpec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store import paths
from lwfed.store.blocks import read_block
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord
from tests.events import Listener, emit_to, ignore, plain

VALUES: dict[str, Any] = {
    "name": "tiny",
    "strategy": "layerwise",
    "stages": {"rounds": [2, 2]},
    "data": {
        "source": "shapes",
        "workers": 0,
        "augment": False,
        "shapes": {"train": 24, "test": 8, "image_size": 16},
    },
    "model": {
        "encoders": {
            "image": {
                "family": "vit",
                "arch": "vit_tiny_patch16_224",
                "blocks_per_stage": 1,
                "config": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
            },
            "text": {
                "family": "distilbert",
                "blocks_per_stage": 1,
                "max_tokens": 64,
                "config": {
                    "vocab_size": 384,
                    "dim": 16,
                    "hidden_dim": 32,
                    "n_layers": 2,
                    "n_heads": 2,
                    "max_position_embeddings": 64,
                },
            },
        },
        "projection": {"hidden": 16, "out": 8, "dropout": 0.1},
        "objective": {"kind": "contrastive", "temperature": 0.07},
    },
    "training": {"local_epochs": 1, "batch_size": 8, "learning_rate": 1.25e-3},
    "federation": {"num_clients": 2},
    "launch": {"device": "cpu"},
    "tracking": {"uri": None},
}
"""Two stages of two rounds."""

ONE_STAGE = (
    "stages.rounds=[2]",
    "model.encoders.image.blocks_per_stage=2",
    "model.encoders.text.blocks_per_stage=2",
)
"""Overrides: the same model in one stage."""

DEPTHS = {"image": 2, "text": 2}

RESNET = (
    "model.encoders.image={family: resnet, arch: resnet18, "
    "config: {img_size: 16, layers: [2, 1, 0, 0], channels: [8, 12, 1, 1]}}"
)
_BERT = "vocab_size: 384, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 64"
BERT = f"model.encoders.text={{family: bert, max_tokens: 64, config: {{{_BERT}, intermediate_size: 32}}}}"
MOBILEBERT = (
    f"model.encoders.text={{family: mobilebert, max_tokens: 64, config: {{{_BERT}, intermediate_size: 24, "
    "embedding_size: 8, intra_bottleneck_size: 12, num_feedforward_networks: 2}}"
)
"""Overrides: other encoders of two blocks; the ResNet's first has fewer channels than its second, so an adapter."""
ENCODERS = {"vit-distilbert": (), "resnet-mobilebert": (RESNET, MOBILEBERT), "resnet-bert": (RESNET, BERT)}
"""Pairs of encoders -> overrides."""


GATED = (
    "stages.rounds=[6,5]", "stages.gate={patience: 1}", "data.shapes.validation=6", "training.learning_rate=0.03"
)  # fmt: skip
"""R@1 of six examples seldom improves twice in a row, so both stages end early."""
MOVING = ("seed=3", "stages.rounds=[7,6]", "stages.gate={kind: movement, threshold: 0.58, window: 3}")
"""Steps this long soon become a random walk: both stages end early, and several rounds after the window is full."""


def tiny_spec(root: Path | str, *overrides: str) -> RunSpec:
    """Returns the spec, with a store in a folder."""
    return build_spec({**VALUES, "store": {"uri": str(root)}}, overrides=overrides)


@dataclass
class Finished:
    """A finished run, and the events that it reported."""

    run: RunRecord
    summary: dict[str, Any]
    bench: Workbench
    events: list[Event] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.bench.store

    @property
    def digest(self) -> str:
        return str(self.summary["digest"])

    @property
    def plans(self) -> tuple[StagePlan, ...]:
        return runs.plans_of(self.run)

    @property
    def keys(self) -> list[str]:
        """Keys of the stages."""
        return [item.key for item in runs.read_run(self.store, self.run.run_id).stages]

    def reported(self, kind: str) -> list[dict[str, Any]]:
        """Returns the values of all events of a kind."""
        return [plain(event)[1] for event in self.events if event.kind == kind]

    def checkpoint(self, stage: int, server_round: int | None = None) -> Checkpoint:
        """A round's manifest, or the stage's."""
        key = self.keys[stage - 1]
        ref = paths.stage_checkpoint(key) if server_round is None else paths.round_checkpoint(key, server_round)
        found = read_checkpoint(self.store, ref)
        assert found is not None
        return found


def prepared(spec: RunSpec, *, store: Store, options: Options | None = None) -> RunRecord:
    """Drafts and prepares a run."""
    return prepare(draft(spec, store=store, options=options or Options()), store=store, emit=ignore)


def run_tiny(
    root: Path | str,
    *overrides: str,
    options: Options | None = None,
    emit: Listener | None = None,
    launcher: Callable[[Store], Launcher] | None = None,
    store: Store | None = None,
) -> Finished:
    """Runs the tiny experiment to its end, or until `emit` raises; in this process unless a launcher is given."""
    store = store or LocalStore(root)
    spec = tiny_spec(root, *overrides)
    run = prepared(spec, store=store, options=options)
    launcher = launcher or partial(InProcess, in_memory=spec.store.updates == "memory")
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if emit is not None:
            emit(*plain(event))

    with closing(launcher(store)) as where:
        summary = run_stages(run, launcher=where, store=store, emit=note, cache=Path(root) / "cache")
    return Finished(run=run, summary=summary.to_values(), bench=Workbench(store), events=events)


class Stopped(BaseException):
    """A run that is killed: nothing between the launcher and the test may catch it."""


def stop_at(kind: str, count: int) -> Listener:
    """Stops a run at the count-th event of a kind."""
    seen = 0

    def emit(name: str, values: dict[str, Any]) -> None:
        nonlocal seen
        seen += name == kind
        if name == kind and seen == count:
            raise Stopped

    return emit


def begun(
    root: Path | str, *overrides: str, store: Store | None = None, number: int = 1
) -> tuple[Workbench, Stage, Place]:
    """Returns a store in which a stage is begun, the first or that `number`, and none of its clients has trained."""
    bench = Workbench(store or LocalStore(root))

    def stop(kind: str, values: dict[str, Any]) -> None:
        if kind == "round_started" and values["stage"] == number:
            raise Stopped

    run = prepared(tiny_spec(root, *overrides), store=bench.store)
    with suppress(Stopped):
        run_stages(run, launcher=InProcess(bench.store), store=bench.store, emit=emit_to(stop), cache=None)
    key = runs.stage_key_of(runs.read_run(bench.store, run.run_id), number)
    assert key is not None
    return bench, bench.stage(key), Place(device="cpu")


def client_task(bench: Workbench, stage: Stage, client: str, *, server_round: int = 1, **place: Any) -> ClientTask:
    """Returns the task of a client, which measures its first step if the round is the first."""
    return ClientTask(
        store=bench.store.uri,
        stage_key=stage.key,
        server_round=server_round,
        place=Place(device="cpu", **place),
        client=client,
        measure=server_round == 1,
    )


def round_task(bench: Workbench, stage: Stage, *, server_round: int = 1, **place: Any) -> RoundTask:
    """Returns the task of a round's aggregation."""
    return RoundTask(
        store=bench.store.uri, stage_key=stage.key, server_round=server_round, place=Place(device="cpu", **place)
    )


def accept(
    bench: Workbench, stage: Stage, clients: Sequence[str], *, server_round: int = 1, **place: Any
) -> dict[str, Any]:
    """Has clients train and commits their updates as those that count; returns the updates."""
    updates = {
        client: train_client(client_task(bench, stage, client, server_round=server_round, **place), bench=bench)
        for client in clients
    }
    kept = {c: {key: u[key] for key in ("digest", "num_examples", "metrics")} for c, u in updates.items()}
    bench.store.write_ref(paths.accepted(stage.key, server_round), {"clients": kept, "failed": {}})
    return updates


def update_tensors(bench: Workbench, stage: Stage, client: str, *, server_round: int = 1) -> dict[str, Tensor]:
    """Reads a client's update."""
    update = bench.store.read_ref(paths.update(stage.key, server_round, client))
    assert update is not None
    folder = paths.updates(stage.key, server_round, client)
    tensors: dict[str, Tensor] = {}
    for values in update["blocks"].values():
        block = Block.from_values(values)
        tensors |= read_block(bench.store, f"{folder}/{block.digest}.safetensors", block)
    return tensors


def measured_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the clients of a round that measured their first step, with their metrics; there must be one."""
    found = {client: metrics for client, metrics in record["clients"].items() if "step_flops" in metrics}
    assert found, "nobody measured"
    return found


def tensors_of(store: Store, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Reads all weights of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for block in checkpoint.blocks.values():
        tensors |= read_block(store, block_key(block), block)
    return tensors


def tensor_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns tensor name -> digest, without reading a weight."""
    return {name: digest for block in checkpoint.blocks.values() for name, (digest, _) in block.tensors.items()}
