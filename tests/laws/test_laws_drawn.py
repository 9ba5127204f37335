"""Laws of filling: what training draws is computed, and nothing else; from whatever it is computed, it is the same."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lwfed.cost.architectures import architectures_of
from lwfed.cost.ledger import stage_costs
from lwfed.data.kept_rows import rounded
from lwfed.data.prefix_cache import INDEX, TOKENS, CachedPrefix
from lwfed.data.prefix_inputs import Inputs, fill_batches
from lwfed.data.reading import Row
from lwfed.data.tokens import token_counts
from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.models.multimodal import Multimodal
from lwfed.round.draws import drawn_in
from lwfed.round.prefix import prefixes_of, repeated
from lwfed.run.runs import Options, plans_of
from lwfed.run.tasks import Place
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import count_architecture
from lwfed.store.local import LocalStore
from lwfed.types.encoded import Codec
from tests.events import ignore
from tests.holes import on, write_holes
from tests.laws.test_laws_prefix import KEEP, SOURCE, inputs_of, module, prefix_metrics
from tests.tiny import (
    ENCODERS,
    MOVING,
    RESNET,
    Finished,
    Stopped,
    begun,
    client_task,
    prepared,
    run_tiny,
    stop_at,
    tiny_spec,
)

__all__ = ["module"]  # a fixture

CROPS = (KEEP, "data.augment=true", "levers.views=3")
THREE = (
    *CROPS, "stages.rounds=[1,2,1]", "model.encoders.image.config.depth=3", "model.encoders.text.config.n_layers=3",
)  # fmt: skip
"""Three stages: the last one fills from what the second has kept, and draws what it has not."""


class Seen:
    """What is on the clients' disks after each round, and what their steps have read until then, by entry."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.read: dict[str, set[int]] = defaultdict(set)
        self.after: list[tuple[dict[str, list[int]], dict[str, set[int]]]] = []
        gather, seen = CachedPrefix.gather, self

        def reading(self: CachedPrefix, rows: Sequence[Row], *, pin: bool = False) -> dict[str, Tensor]:
            seen.read[self.entry.name] |= {self.inputs.number(row) for row in rows}
            return gather(self, rows, pin=pin)

        monkeypatch.setattr(CachedPrefix, "gather", reading)

    def emit(self, kind: str, values: dict[str, Any]) -> None:
        if kind != "round":
            return
        kept: dict[str, list[int]] = defaultdict(list)
        for index in sorted(self.root.rglob(f"prefix/*/*/{INDEX}")):
            kept[index.parent.parent.name] += json.loads(index.read_text())["numbers"]
        self.after.append((dict(kept), {name: set(numbers) for name, numbers in self.read.items()}))


def run_seen(root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Finished, Seen]:
    seen = Seen(root, monkeypatch)
    return run_tiny(root, *overrides, emit=seen.emit), seen


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages.rounds=[1,2]",),
        ("stages.rounds=[1,1]", "training.batch_size=11"),  # an epoch leaves one example out
        ("stages.rounds=[1,1]", "training.local_steps=1"),
        ("stages.rounds=[1,1]", "training.local_steps=1", "data.length_buckets=true"),
        ("stages.rounds=[1,4]", "federation.num_clients=3", "federation.fraction_fit=0.67"),
    ],
    ids=" ".join,
)
def test_what_a_stage_draws_is_filled_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """Once per client, for all its rounds."""
    done, seen = run_seen(tmp_path, monkeypatch, *CROPS, *overrides)
    kept, read = seen.after[-1]
    assert kept.keys() == read.keys()
    for name, numbers in read.items():
        assert sorted(kept[name]) == sorted(numbers), "nothing twice, nothing too much, nothing missing"
    filled: dict[tuple[str, str], int] = defaultdict(int)
    for record in done.reported("round"):
        for client, metrics in record["clients"].items():
            for modality, state in metrics.get("prefix", {}).items():
                filled[client, modality] += state == "filled"
    assert set(filled.values()) == {1}
    computed = sum(sum(c.values()) for m in prefix_metrics(done, 2) for c in m.get("prefix_filled", {}).values())
    assert computed == sum(map(len, read.values()))


@pytest.mark.parametrize(
    "overrides",
    [
        (*MOVING[1:], "seed=3"),
        (
            "stages.rounds=[1,3]",
            "federation.num_clients=3",
            "federation.fraction_fit=0.67",
            "federation.sampling=by_size",
        ),
    ],
    ids=["gate", "by size"],
)
def test_where_the_rounds_to_come_are_not_certain_each_round_fills_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    done, seen = run_seen(tmp_path, monkeypatch, *CROPS, *overrides)
    for record, (kept, read) in zip(done.reported("round"), seen.after, strict=True):
        if record["stage"] == 2:
            assert {name: sorted(kept[name]) for name in read} == {name: sorted(found) for name, found in read.items()}
    assert any(m["prefix"]["text"] == "filled" for m in prefix_metrics(done, 2)[2:]), "in later rounds, too"


def test_of_examples_with_holes_what_batches_of_the_modality_have_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_holes(tmp_path / "data")
    _, seen = run_seen(tmp_path / "store", monkeypatch, *on(tmp_path / "data", KEEP, "training.batch_size=5"))
    kept, read = seen.after[-1]
    assert kept and {name: sorted(found) for name, found in kept.items()} == {n: sorted(f) for n, f in read.items()}


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("whole", [False, True])
def test_an_output_does_not_depend_on_what_else_is_computed(module: Multimodal, modality: str, whole: bool) -> None:
    """Bit for bit: alone, with others, in any number, and padded up to the number of neighbours."""
    inputs = inputs_of(modality, views=2, augment=True)
    generator = torch.Generator().manual_seed(0)
    some = sorted(torch.randperm(len(inputs), generator=generator)[: len(inputs) // 3].tolist())

    def outputs(groups: list[list[int]]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        batches = [batch for _, batch in fill_batches(inputs, groups, size=16, whole=whole)]
        for batch, raw in zip(batches, inputs.load(SOURCE, batches, workers=0), strict=True):
            assert batch.rows >= len(batch.numbers) and (whole or batch.rows == max(2, len(batch.numbers)))
            state = module.prefix(modality, repeated(raw, rows=batch.rows), cut=2)
            for row, number in enumerate(batch.numbers):
                found[number] = state.tokens[row] if state.mask is None else state.tokens[row][state.mask[row]]
        return found

    everything = outputs([list(range(len(inputs)))])
    assert sorted(everything) == list(range(len(inputs)))
    for found in (outputs([some]), outputs([some[::2], some[1::2]]), outputs([[number] for number in some])):
        assert sorted(found) == some
        assert all(torch.equal(found[number], everything[number]) for number in some)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("encoders", ["vit-distilbert", "resnet-mobilebert"])
def test_from_the_inputs_or_from_an_earlier_stage_it_is_the_same(tmp_path: Path, codec: str, encoders: str) -> None:
    """A client without a folder computes all from the inputs in each round; one that lost its folder, in between."""
    three = (*(THREE if encoders == "vit-distilbert" else (*CROPS, "stages.rounds=[1,2]", *ENCODERS[encoders])),)
    overrides = (*three, f"levers.prefix_dtype={codec}")

    def lose(kind: str, values: dict[str, Any]) -> None:
        if kind == "round" and values["global_round"] == 2:
            for folder in (tmp_path / "lost").rglob("prefix"):
                shutil.rmtree(folder)

    kept = run_tiny(tmp_path / "kept", *overrides)
    lost = run_tiny(tmp_path / "lost", *overrides, emit=lose)
    store = LocalStore(tmp_path / "none")
    run = prepared(tiny_spec(tmp_path / "none", *overrides), store=store)
    nowhere = run_stages(run, launcher=InProcess(store), store=store, emit=ignore, cache=None)
    assert kept.digest == lost.digest == nowhere.digest
    if encoders == "vit-distilbert":
        starts = [set(m["prefix_filled"]["text"]) for m in prefix_metrics(kept, 3)]
        assert starts == [{"0", "2"}] * 2, "some captions from the inputs, some from the stem and a block"


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_kill_in_the_midst_of_it_changes_nothing(tmp_path: Path, codec: str) -> None:
    overrides, options = (*THREE, f"levers.prefix_dtype={codec}"), Options(run_id="again")
    whole = run_tiny(tmp_path / "whole", *overrides)
    for kind, count in (("client_step", 8), ("client_done", 5), ("round", 3)):
        with pytest.raises(Stopped):
            run_tiny(tmp_path / "killed", *overrides, options=options, emit=stop_at(kind, count))
    assert run_tiny(tmp_path / "killed", *overrides, options=options).digest == whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_in_processes_it_ends_in_the_same_digest(tmp_path: Path, codec: str) -> None:
    overrides = (*THREE, f"levers.prefix_dtype={codec}")
    there = run_tiny(
        tmp_path / "there", *overrides, launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0)
    )
    assert there.digest == run_tiny(tmp_path / "here", *overrides).digest


def test_the_ledger_says_what_filling_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the FLOP, counted by torch, at the texts' own length."""
    # asking for room runs an encoder on the meta device, which torch counts, too
    monkeypatch.setattr("lwfed.round.prefix._has_room", lambda *_, **__: True)
    bench, stage, _ = begun(tmp_path, *THREE, number=3)
    architectures = architectures_of(stage.plan.model, folder=None, count=count_architecture)
    for client in ("client-000", "client-001"):
        ctx = bench.client(client_task(bench, stage, client, cache=str(tmp_path / "own")))
        examples, _ = bench.share(stage, ctx.place, client)
        with FlopCounterMode(display=False) as counter:
            found = prefixes_of(ctx, ctx.start(), examples=examples, folder=tmp_path / "own" / client)
        texts = found.cached["text"]
        batches = fill_batches(texts.inputs, [texts.numbers], size=256, whole=False)
        (length,) = {batch.length for _, batch in batches}
        (cost,) = stage_costs([stage.plan], architectures=architectures, tokens={"text": length})
        said = sum(
            count * cost.fill_from[m][done]
            for m, counts in found.metrics()["prefix_filled"].items()
            for done, count in counts.items()
        )
        assert counter.get_total_flops() == said == len(examples) * cost.fill_flops, "one view and one caption of each"


def test_the_ledger_follows_what_each_stage_draws(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, *THREE, "data.shapes.train=240")
    second, third = done.run.predicted[1:]
    images = {stage: [m["prefix_filled"]["image"] for m in prefix_metrics(done, stage)[:2]] for stage in (2, 3)}
    assert images[2] == [{"0": 240}] * 2, "two views of three"
    assert images[3] == [{"0": 120}] * 2, "epoch 3 has the view that epochs 1 and 2 have not"
    texts = [m["prefix_filled"]["text"] for m in prefix_metrics(done, 3)]
    for counts in texts:
        share = 1 - (1 - 1 / 5) ** 2
        assert counts["2"] / 120 == pytest.approx(share, abs=0.15) and sum(counts.values()) == 120
    assert second["fill_flops"] > third["fill_flops"] > 0


@pytest.mark.parametrize(
    ("codec", "pixel", "token"), [("fp32", 4 * 8, 4 * 16), ("bf16", 2 * 8, 2 * 16), ("int8", 12, 20)]
)
def test_disk_and_reading_are_the_ledgers(tmp_path: Path, codec: str, pixel: int, token: int) -> None:
    """Feature maps of 16 pixels by 8 channels, without crops, and texts of 16 values a token, each at its own length.

    The ledger counts with the captions' mean length, and with the mean number of captions that are drawn.
    """
    sizes: dict[str, int] = {}  # at the end of the last round: a run leaves nothing behind

    def look(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            for client in ("client-000", "client-001"):
                sizes[client] = sum(path.stat().st_size for path in tmp_path.rglob(f"{client}/prefix/*/*/{TOKENS}"))

    done = run_tiny(tmp_path, KEEP, RESNET, f"levers.prefix_dtype={codec}", emit=look)
    cost = done.run.predicted[1]
    mean = cost["kept_tokens"]["text"]
    assert mean < cost["tokens"]["text"], "steps pad texts to the longest of a batch"
    assert cost["read_bytes"] == 16 * pixel + mean * token
    assert cost["cache_bytes"] == round(16 * pixel + 5 * (1 - 0.8**2) * mean * token)
    stage = done.bench.stage(done.keys[1])
    settings, rounds = done.bench.inputs(stage), [r for r in done.reported("round") if r["stage"] == 2]
    for client in ("client-000", "client-001"):
        examples, _ = done.bench.share(stage, Place(device="cpu"), client)
        texts = Inputs("text", tuple(examples), settings, stage.plan.seed, False, 5)

        def tokens_in(*numbers: int, texts: Inputs = texts) -> int:
            """Returns the number of tokens of all captions that are drawn in some rounds."""
            captions = texts.captions(drawn_in(stage.plan, numbers, inputs=texts))
            return sum(token_counts(captions, settings=settings))

        on_disk = 12 * 16 * pixel + tokens_in(1, 2) * token
        assert sizes[client] == on_disk
        for record in rounds:
            metrics = record["clients"][client]
            assert metrics["prefix_cache_bytes"] == on_disk and metrics["steps"] == 2
            assert metrics["prefix_read_bytes"] == 12 * 16 * pixel + tokens_in(record["round"]) * token
    alone = run_tiny(tmp_path / "alone", RESNET, "stages.rounds=[1,3]", f"levers.prefix_dtype={codec}")
    cost = alone.run.predicted[1]
    for metrics in prefix_metrics(alone, 2):
        assert metrics["prefix"].keys() == {"image"}
        assert metrics["prefix_cache_bytes"] == 12 * cost["cache_bytes"] == 12 * 16 * pixel
        assert metrics["prefix_read_bytes"] == 12 * cost["read_bytes"] == 12 * 16 * pixel


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_run_on_rounded_outputs_is_a_run_whose_outputs_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    """Bit for bit: a format changes what is read and nothing else. How well it trains is in docs/results.md."""
    kept = run_tiny(tmp_path / "kept", KEEP, f"levers.prefix_dtype={codec}")
    plain = run_tiny(tmp_path / "plain", KEEP)
    at = CachedPrefix.at

    def rounding(self: CachedPrefix, *args: Any, **options: Any) -> dict[str, Tensor]:
        found = at(self, *args, **options)
        return {**found, "tokens": rounded(found["tokens"], codec)}

    monkeypatch.setattr(CachedPrefix, "at", rounding)
    assert run_tiny(tmp_path / "rounded", KEEP).digest == kept.digest != plain.digest


def test_what_a_plan_says_of_formats_and_nothing_if_they_are_fp32(tmp_path: Path) -> None:
    plain, small = (
        prepared(tiny_spec(tmp_path, *THREE, f"levers.prefix_dtype={codec}"), store=LocalStore(tmp_path))
        for codec in ("fp32", "int8")
    )
    levers = [[plan.model_dump(mode="json")["levers"] for plan in plans_of(run)] for run in (plain, small)]
    assert [set(one) for one in levers[0]] == [{"last_block", "views"}] * 3
    assert [one.get("prefix_dtype") for one in levers[1]] == [None, "int8", "int8"]
    assert [one.get("rounded_at") for one in levers[1]] == [None, None, {"image": [1], "text": [1]}]


def test_a_run_draws_what_its_rounds_draw(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, *CROPS, number=2)
    ctx = bench.client(client_task(bench, stage, "client-000"))
    examples, _ = bench.share(stage, ctx.place, "client-000")
    inputs = Inputs("text", tuple(examples), bench.inputs(stage), stage.plan.seed, True, 5)
    first, second = (set(drawn_in(stage.plan, (number,), inputs=inputs)) for number in (1, 2))
    assert len(first) == len(second) == len(examples) and first != second
    assert drawn_in(stage.plan, (1, 2), inputs=inputs) == sorted(first | second)
