"""Laws of the prefix cache: it holds what the frozen blocks would compute, is filled once, and is optional."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.batches import train_batches
from lwfed.data.inputs import InputSettings
from lwfed.data.prefix_cache import INDEX, CachedPrefix, keep_only
from lwfed.data.prefix_inputs import Inputs
from lwfed.data.protocol import Example, open_source
from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.models.build import initial_tensors, load, skeleton
from lwfed.models.multimodal import Multimodal
from lwfed.plan.units import units_of
from lwfed.round.prefix import _function
from lwfed.round.workbench import Workbench
from lwfed.spec.data import DataSpec
from lwfed.spec.load import build_spec
from lwfed.spec.model import ModelSpec
from lwfed.steps.experiment import run_stages
from lwfed.store.local import LocalStore
from tests.events import emit_to
from tests.kept import CHAIN, batches_of, entry_of, kept_whole
from tests.tiny import ENCODERS, RESNET, VALUES, Finished, begun, client_task, prepared, run_tiny, tiny_spec

AUDIO = {
    "family": "ast",
    "config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_length": 32, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
    },
}  # fmt: skip


def model_of(*overrides: str) -> ModelSpec:
    """Returns the tiny experiment's model with a third modality."""
    values = build_spec(VALUES, overrides=overrides).model.model_dump()
    return ModelSpec.model_validate({**values, "encoders": {**values["encoders"], "audio": AUDIO}})


SETTINGS = InputSettings(
    ("audio", "image", "text"), image_size=16, max_tokens=64, vocab_size=384, num_mel_bins=32, frames=32
)
SOURCE = open_source(DataSpec(source="shapes", shapes=ShapesSize(train=12, test=4, image_size=16)))
SEED, BATCH = "5eed", 4
KEEP = "levers.prefix_cache=always"


@pytest.fixture(scope="module", params=("vit-distilbert", "resnet-mobilebert"))
def module(request: pytest.FixtureRequest) -> Multimodal:
    model = model_of(*ENCODERS[request.param])
    depth = dict.fromkeys(model.modalities, 2)
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=None, seed="0")
    return load(skeleton(model, depth=depth, num_classes=None), tensors).eval().requires_grad_(False)


def spectrograms(count: int) -> Tensor:
    return torch.randn(count, 32, 32, generator=torch.Generator().manual_seed(0))


def inputs_of(modality: str, *, views: int = 1, augment: bool = False) -> Inputs:
    return Inputs(modality, tuple(SOURCE.examples("train")), SETTINGS, SEED, augment, views)


def raw_batches(modality: str, inputs: Inputs) -> list[Any]:
    if modality == "audio":  # scenes have no sound
        return list(spectrograms(len(inputs)).split(BATCH))
    return list(batches_of(inputs, SOURCE, batch_size=BATCH))


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_what_is_kept_is_what_would_be_computed(modality: str, module: Multimodal, tmp_path: Path) -> None:
    """Bit for bit, for the same batches."""
    inputs = inputs_of(modality)
    states = [module.prefix(modality, raw, cut=1) for raw in raw_batches(modality, inputs)]
    kept = kept_whole(tmp_path, entry_of(inputs), ((state.tokens, state.mask) for state in states))
    assert len(inputs) == sum(len(state.tokens) for state in states)
    start = 0
    for state in states:
        found = kept.at(range(start, start + len(state.tokens)))
        start += len(state.tokens)
        if state.mask is None:
            assert torch.equal(found["tokens"], state.tokens)
            continue
        longest = found["tokens"].shape[1]
        assert torch.equal(found["mask"], state.mask[:, :longest]) and not state.mask[:, longest:].any()
        assert torch.equal(found["tokens"][found["mask"]], state.tokens[state.mask])


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_projections_of_what_is_kept_are_those_of_the_inputs(modality: str, module: Multimodal, tmp_path: Path) -> None:
    """For texts within rounding, if another batch was padded differently; otherwise exactly."""
    inputs = inputs_of(modality)
    batches = raw_batches(modality, inputs)
    states = [module.prefix(modality, raw, cut=1) for raw in batches]
    kept = kept_whole(tmp_path, entry_of(inputs), ((state.tokens, state.mask) for state in states))
    numbers = list(range(BATCH))
    ours = module.project(modality, kept.at(numbers), cut=1)
    theirs = module.project(modality, batches[0], cut=1)
    if modality == "text":
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(ours, theirs)


def test_newly_frozen_blocks_applied_to_what_is_kept_are_all_blocks_at_once(module: Multimodal, tmp_path: Path) -> None:
    for modality in ("image", "text"):
        inputs = inputs_of(modality)
        encoder = module.encoder(modality)
        states = [module.prefix(modality, raw, cut=1) for raw in raw_batches(modality, inputs)]
        first = kept_whole(tmp_path, entry_of(inputs), ((s.tokens, s.mask) for s in states))
        found = first.at(range(BATCH))
        later = encoder.advance(states[0]._replace(tokens=found["tokens"], mask=found.get("mask")), start=1, stop=2)
        whole = module.prefix(modality, raw_batches(modality, inputs)[0], cut=2)
        mask = found.get("mask")
        if mask is None:
            assert torch.equal(later.tokens, whole.tokens)
        else:
            assert torch.equal(later.tokens[mask], whole.tokens[:, : mask.shape[1]][mask])


def test_rows_of_a_batch_find_their_view_and_their_caption(tmp_path: Path) -> None:
    images, texts = inputs_of("image", views=3, augment=True), inputs_of("text")
    examples = images.examples
    assert len(images) == 3 * len(examples) and len(texts) == sum(len(e.captions) for e in examples)
    assert [images.number((2, view)) for view in range(5)] == [6, 7, 8, 6, 7]
    fed = torch.cat(list(batches_of(images, SOURCE, batch_size=BATCH)))
    made = {m: _kept_inputs(i, tmp_path / m) for m, i in (("image", images),)}
    common = {
        "examples": examples, "settings": replace(SETTINGS, modalities=("image", "text")), "batch_size": 5,
        "seed": SEED, "first_view": 4, "augment": True, "workers": 0, "num_batches": 3,
    }  # fmt: skip
    raw = list(train_batches(SOURCE, views={"image": 3}, **common))
    ours = list(train_batches(SOURCE, views={"image": 3}, cached=made, **common))
    for one, other in zip(raw, ours, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.inputs["image"].flatten(1), other.inputs["image"]["tokens"].flatten(1))
        assert torch.equal(one.inputs["text"]["ids"], other.inputs["text"]["ids"])
    assert not torch.equal(fed[0], fed[1]), "views differ"
    views = [inputs_of("image", views=3, augment=True).number((0, v)) for v in (0, 3)]
    assert views[0] == views[1]


def _kept_inputs(inputs: Inputs, folder: Path) -> CachedPrefix:
    """Keeps the raw pixels themselves, as tokens: what comes back shows which input a row got."""
    raw = ((pixels.flatten(1)[:, None, :], None) for pixels in batches_of(inputs, SOURCE, batch_size=BATCH))
    return kept_whole(folder, entry_of(inputs), raw)


def test_other_blocks_examples_seeds_views_formats_or_code_are_not_taken_for_these(tmp_path: Path) -> None:
    inputs = inputs_of("image", views=2, augment=True)
    _kept_inputs(inputs, tmp_path)
    entry = entry_of(inputs)
    assert CachedPrefix(tmp_path, entry).numbers == list(range(len(inputs)))
    longer = replace(entry, chain=(*CHAIN, "next"))
    assert not CachedPrefix(tmp_path, longer).numbers
    assert [one.chain for one in longer.earlier()] == [CHAIN, CHAIN[:1]], "a leading part is a start"
    fewer = replace(inputs, examples=inputs.examples[1:])
    renamed = replace(inputs, examples=(Example("x", None, ("a",)), *inputs.examples[1:]))
    others = [fewer, renamed, replace(inputs, seed="0"), replace(inputs, views=1), replace(inputs, augment=False)]
    for other in (
        replace(entry, chain=("stem", "other")), replace(entry, code="newer"), replace(entry, codec="bf16"),
        replace(entry, rounded_at=(1,)), *map(entry_of, others),
    ):  # fmt: skip
        assert not CachedPrefix(tmp_path, other).numbers
    keep_only(tmp_path, [entry, entry_of(inputs_of("text"))], modality="text")
    assert CachedPrefix(tmp_path, entry).numbers, "another modality's"
    keep_only(tmp_path, [longer], modality="image")
    assert not list(tmp_path.iterdir())


def test_a_rounded_entry_is_made_of_those_that_were_rounded_alike() -> None:
    entry = replace(entry_of(inputs_of("image")), chain=tuple("abcdef"), codec="int8", rounded_at=(1, 3))
    assert [(len(one.chain), one.rounded_at) for one in entry.earlier()] == [(4, (1,)), (2, ())]


def test_what_is_damaged_or_half_written_is_not_used(tmp_path: Path) -> None:
    inputs = inputs_of("image")
    kept = _kept_inputs(inputs, tmp_path)
    (place,) = tmp_path.iterdir()
    (part,) = place.iterdir()
    index, tokens = json.loads((part / INDEX).read_text()), (part / "tokens").read_bytes()
    for name, content in (
        (INDEX, json.dumps(index | {"lengths": index["lengths"][:-1]}).encode()),
        (INDEX, json.dumps(index | {"numbers": [len(inputs), *index["numbers"][1:]]}).encode()),
        (INDEX, b"{"), ("tokens", tokens[:-4]), ("tokens", b""),
    ):  # fmt: skip
        (part / name).write_bytes(content)
        assert not CachedPrefix(tmp_path, kept.entry).numbers and not part.exists()
        _kept_inputs(inputs, tmp_path)
    part.rename(place / "0001")
    _kept_inputs(inputs, tmp_path)
    assert sorted(one.name for one in place.iterdir()) == ["0001", "0002"], "a damaged part leaves a gap, and no more"
    shutil.rmtree(place)

    def breaks() -> Any:
        yield torch.zeros(2, 1, 3), None
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        kept_whole(tmp_path, kept.entry, breaks())
    assert not list(tmp_path.iterdir())


def prefix_metrics(done: Finished, stage: int) -> list[dict[str, Any]]:
    """Returns what each update of a stage reports of its frozen blocks."""
    records = [record for record in done.reported("round") if record["stage"] == stage]
    return [metrics for record in records for metrics in record["clients"].values()]


def test_a_stage_fills_once_and_fetches_only_what_is_newly_frozen(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, KEEP)
    assert not any("prefix" in metrics for metrics in prefix_metrics(done, 1))
    first, second = prefix_metrics(done, 2)[:2], prefix_metrics(done, 2)[2:]
    assert [m["prefix"] for m in first] == [{"image": "filled", "text": "filled"}] * 2
    assert [m["prefix"] for m in second] == [{"image": "kept", "text": "kept"}] * 2
    start = done.checkpoint(2, 0)
    frozen = sum(start.blocks[unit].nbytes for unit in done.plans[1].frozen)
    assert [m["bytes_down_frozen"] for m in first] == [frozen] * 2
    assert [m["bytes_down_frozen"] for m in second] == [0] * 2
    assert all(m["prefix_cache_bytes"] > 0 for m in first)


@pytest.mark.parametrize("encoders", ["vit-distilbert", "resnet-mobilebert"])
def test_training_on_cached_outputs_ends_in_the_digest_of_training_on_inputs(tmp_path: Path, encoders: str) -> None:
    """Within rounding: batches of another shape are summed in another order."""
    kept = run_tiny(tmp_path / "kept", KEEP, *ENCODERS[encoders])
    computed = run_tiny(tmp_path / "computed", "levers.prefix_cache=never", *ENCODERS[encoders])
    assert kept.checkpoint(1).digest == computed.checkpoint(1).digest
    losses = [[r["metrics"]["train/loss"] for r in done.reported("round")] for done in (kept, computed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_cache_of_feature_maps_has_the_ledgers_bytes(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, RESNET)
    cost = done.run.predicted[1]
    assert cost["cache_bytes"] == 4 * (4 * 4) * 8, "pixels by channels"
    for metrics in prefix_metrics(done, 2):
        assert metrics["prefix"].keys() == {"image"}
        assert metrics["prefix_cache_bytes"] == 12 * cost["cache_bytes"]


def test_no_room_is_reported_and_costs_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lwfed.round.prefix.add_part", full)
    done = run_tiny(tmp_path, KEEP)
    reported = prefix_metrics(done, 2)
    assert all(m["prefix"]["image"].startswith("recomputed: ") for m in reported)
    assert all("No space left on device" in m["prefix"]["text"] for m in reported)
    records = [record for record in done.reported("round") if record["stage"] == 2]
    assert all(sorted(record["recomputed_prefixes"]) == ["client-000", "client-001"] for record in records)
    assert len(done.reported("warning")) == 2
    monkeypatch.undo()
    monkeypatch.setattr("lwfed.round.prefix.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    small = run_tiny(tmp_path / "small", KEEP)
    assert all("there is no room" in metrics["prefix"]["image"] for metrics in prefix_metrics(small, 2))


def test_a_client_without_a_folder_computes_again_each_round_and_ends_in_the_same_digest(tmp_path: Path) -> None:
    """As pods of a pool without a volume do."""
    bench = Workbench(LocalStore(tmp_path))
    run = prepared(tiny_spec(tmp_path, KEEP), store=bench.store)
    events: list[dict[str, Any]] = []

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            events.append(values)

    summary = run_stages(run, launcher=InProcess(bench.store), store=bench.store, emit=emit_to(emit), cache=None)
    assert summary.digest == run_tiny(tmp_path / "with", KEEP).digest
    reported = [metrics["prefix"] for record in events for metrics in record["clients"].values() if "prefix" in metrics]
    assert reported == [{"image": "filled", "text": "filled"}] * 4


def test_another_encoder_precision_or_version_of_the_data_is_another_function(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    ctx = bench.client(client_task(bench, stage, "client-000"))
    own, plan = _function(ctx, "image"), stage.plan

    def changed(**update: Any) -> str:
        return _function(replace(ctx, stage=replace(stage, plan=plan.model_copy(update=update))), "image")

    encoders = plan.model.encoders
    heads = encoders["image"].model_copy(update={"config": {**encoders["image"].config, "num_heads": 4}})
    model = plan.model.model_copy(update={"encoders": {**encoders, "image": heads}})
    training = plan.training.model_copy(update={"precision": "bf16"})
    renewed = _function(replace(ctx, stage=replace(stage, data_version="x")), "image")
    others = [changed(model=model), changed(training=training), renewed]
    assert len({own, *others, _function(ctx, "text")}) == 5
    appended = encoders["image"].model_copy(update={"blocks_per_stage": 7})
    assert changed(model=plan.model.model_copy(update={"encoders": {**encoders, "image": appended}})) == own


@pytest.mark.slow
def test_processes_of_their_own_end_in_the_same_digest(tmp_path: Path) -> None:
    here = run_tiny(tmp_path / "here", KEEP, "data.augment=true", "levers.views=2", "training.local_epochs=2")
    there = run_tiny(
        tmp_path / "there", KEEP, "data.augment=true", "levers.views=2", "training.local_epochs=2",
        launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0),
    )  # fmt: skip
    assert here.digest == there.digest
    assert prefix_metrics(there, 2)[-1]["prefix"] == {"image": "kept", "text": "kept"}
