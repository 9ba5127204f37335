"""Laws of evaluating again and again: what is kept changes no bit, and frozen blocks run once for the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lwfed.launch.in_process import InProcess
from lwfed.models.build import load
from lwfed.plan.stages import StagePlan
from lwfed.round.evaluate import evaluate
from lwfed.round.forward import Forward, KeptOutputs, forward_of
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import Place
from lwfed.store import paths
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.local import LocalStore
from lwfed.store.manifest import Block
from lwfed.store.protocol import Store
from tests.tiny import ENCODERS, Finished, begun, run_tiny, tensors_of

CPU = torch.device("cpu")
PLACE = Place(device="cpu")


def scores_of(done: Finished, plan: StagePlan, *, kept: KeptOutputs | None) -> dict[str, float]:
    """Judges a stage's result on the test data."""
    key, checkpoint, bench = done.keys[plan.stage - 1], done.checkpoint(plan.stage), Workbench(done.store)
    stage, forward = bench.stage(key), forward_of(plan, checkpoint, kept=kept)
    return evaluate(
        load(bench.skeleton(key), tensors_of(done.store, checkpoint)), source=bench.data(stage, PLACE),
        examples=bench.examples(stage, PLACE, "test"), inputs=bench.inputs(stage), model=stage.plan.model,
        evaluation=stage.plan.evaluation.model_copy(update={"batch_size": 3}), workers=0, device=CPU, forward=forward,
    )  # fmt: skip


@pytest.mark.parametrize("encoders", ENCODERS)
@pytest.mark.parametrize("objective", ["contrastive", "supervised"])
def test_what_is_kept_changes_no_bit(tmp_path: Path, encoders: str, objective: str) -> None:
    """From stage to stage, when outputs are first kept and when they come again, and if only some batches have room."""
    blocks = "model.encoders.image.config.depth=3", "model.encoders.text.config.n_layers=3"
    depth = blocks if encoders == "vit-distilbert" else ()
    options = () if objective == "contrastive" else (f"model.objective={{kind: {objective}}}",)
    rounds = f"stages.rounds={[1, 1, 1] if depth else [1, 1]}"
    done = run_tiny(tmp_path, *ENCODERS[encoders], *depth, rounds, *options)
    whole = [scores_of(done, plan, kept=None) for plan in done.plans]
    for max_bytes in (1 << 30, 2000, 0):
        kept = KeptOutputs(max_bytes)
        for plan, expected in zip(done.plans, whole, strict=True):
            assert scores_of(done, plan, kept=kept) == scores_of(done, plan, kept=kept) == expected
            assert (kept.nbytes > 0) == (max_bytes > 0 and plan.stage > 1) and kept.nbytes <= max_bytes


def test_a_run_records_the_scores_of_its_models(tmp_path: Path) -> None:
    """A coordinator that keeps outputs from stage to stage records what a fresh process finds."""
    done = run_tiny(tmp_path, "stages.rounds=[1,2]", "evaluation.batch_size=3")
    for plan in done.plans:
        recorded = done.reported("round")[-1 if plan.stage == 2 else 0]["metrics"]
        fresh = scores_of(done, plan, kept=None)
        assert {name: recorded[name] for name in fresh} == fresh


def test_frozen_blocks_run_once_for_the_same_inputs(tmp_path: Path) -> None:
    bench, stage, checkpoint = second_stage(tmp_path)
    forward, seen = forward_of(stage.plan, checkpoint, kept=KeptOutputs()), list[str]()
    module = load(bench.skeleton(stage.key), tensors_of(bench.store, checkpoint))
    for unit in ("image.blocks.0", "text.stem", "text.blocks.0", "text.projection"):
        module.get_submodule(unit).register_forward_hook(lambda *_, unit=unit: seen.append(unit))
    for count in (1, 2):
        judged(bench, stage, forward)
        assert seen.count("image.blocks.0") == 1
        assert seen.count("text.projection") == count * seen.count("text.blocks.0") == count * seen.count("text.stem")


def test_outputs_of_other_weights_are_not_used(tmp_path: Path) -> None:
    bench, stage, checkpoint = second_stage(tmp_path)
    kept = KeptOutputs()
    inputs = torch.randn(2, 3, 16, 16)
    module = load(bench.skeleton(stage.key), tensors_of(bench.store, checkpoint)).eval()
    other = forward_of(stage.plan, with_other_stem(checkpoint), kept=kept)
    with torch.inference_mode():
        first = forward_of(stage.plan, checkpoint, kept=kept).project(module, "image", inputs)
        with torch.no_grad():
            next(module.get_submodule("image.stem").parameters()).mul_(2)
        assert not torch.equal(other.project(module, "image", inputs), first)


def second_stage(folder: Path) -> tuple[Workbench, Stage, Checkpoint]:
    """Returns a second stage that is begun, and its first model."""
    bench, stage, _ = begun(folder, number=2)
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, 0))
    assert checkpoint is not None
    return bench, stage, checkpoint


def judged(bench: Workbench, stage: Stage, forward: Forward) -> Mapping[str, float]:
    """Judges the weights in a bench's model."""
    return evaluate(
        bench.skeleton(stage.key), source=bench.data(stage, PLACE), examples=bench.examples(stage, PLACE, "test"),
        inputs=bench.inputs(stage), model=stage.plan.model, evaluation=stage.plan.evaluation, workers=0, device=CPU,
        forward=forward,
    )  # fmt: skip


def with_other_stem(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint whose image stem has another digest."""
    block = checkpoint.blocks["image.stem"]
    other = Block({name: ("0" * 64, spec) for name, (_, spec) in block.tensors.items()})
    return replace(checkpoint, blocks={**checkpoint.blocks, "image.stem": other})


def test_a_closed_launcher_keeps_nothing(tmp_path: Path) -> None:
    launchers: list[InProcess] = []

    def launcher(store: Store) -> InProcess:
        launchers.append(InProcess(store))
        return launchers[-1]

    most: list[int] = []

    def look(kind: str, _: Mapping[str, Tensor]) -> None:
        if launchers and launchers[0].bench.outputs is not None:
            most.append(launchers[0].bench.outputs.nbytes)

    run_tiny(tmp_path, store=LocalStore(tmp_path), launcher=launcher, emit=look)
    assert max(most) > 0
    assert launchers[0].bench.outputs is not None and launchers[0].bench.outputs.nbytes == 0
