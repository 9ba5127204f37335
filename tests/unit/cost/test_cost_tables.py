"""Laws of what is made from the costs: device fit, schedule, rows, cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lwfed.cost.architectures import architecture_of, architectures_of, by_formulas, cache_key
from lwfed.cost.explain import parts, rows
from lwfed.cost.fit import fit
from lwfed.cost.ledger import end_to_end_cost, stage_costs
from lwfed.cost.schedule import samples_per_round, schedule_costs
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.model import EncoderSpec
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import count_architecture
from lwfed.types.errors import SpecError
from lwfed.types.sizes import parse_size


def bill(
    strategy: str = "layerwise", *, last_block: str = "auto", **training: Any
) -> tuple[tuple[StagePlan, ...], list[StageCost], StageCost]:
    levers = {"prefix_cache": "never", "last_block": last_block}
    spec = RunSpec.model_validate({"strategy": strategy, "training": training, "levers": levers})
    architectures = {m: architecture for m, e in spec.model.encoders.items() if (architecture := by_formulas(e))}
    stages = plan_stages(spec, depths={m: a.depth for m, a in architectures.items()})
    costs = stage_costs(stages, architectures=architectures)
    return stages, costs, end_to_end_cost(stages, architectures=architectures)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 GB", 1_500_000_000),
        (" 64 kib ", 65536),
        ("4096", 4096),
        ("2G", 2_000_000_000),
        ("1TiB", 2**40),
        ("7b", 7),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "8 apples", "0", "1e9", "8GiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="8GiB"):
        parse_size(text)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_largest_batch_is_the_largest_that_fits(precision: str) -> None:
    device = 2 * 2**30
    for cost in bill(batch_size=32, precision=precision)[1]:
        largest = fit(cost, device_bytes=device).largest_batch
        assert bill(batch_size=largest, precision=precision)[1][cost.stage - 1].peak_bytes <= device
        assert bill(batch_size=largest + 1, precision=precision)[1][cost.stage - 1].peak_bytes > device


def test_verdicts() -> None:
    cost = bill("end_to_end", batch_size=32)[1][0]
    assert fit(cost, device_bytes=cost.peak_bytes).fits
    small = fit(cost, device_bytes=cost.peak_bytes - 1)
    assert (small.fits, small.largest_batch) == (False, 31)
    assert "31" in small.verdict
    assert fit(cost, device_bytes=10**9).largest_batch == 0


def test_samples_of_a_round() -> None:
    stage = bill(batch_size=32, local_epochs=3)[0][0]
    assert [samples_per_round(stage, num_examples=n) for n in (64, 65, 66, 20)] == [192, 192, 198, 60]
    assert samples_per_round(bill(batch_size=32, local_steps=4)[0][0], num_examples=100) == 128


def test_the_schedule_adds_the_stages_up() -> None:
    stages, costs, whole = bill(batch_size=32)
    own, reference = schedule_costs(stages, costs=costs, end_to_end=whole, num_examples=64)
    assert own.bytes_up == own.bytes_down == sum(15 * cost.exchanged_bytes for cost in costs)
    assert own.bytes_down_frozen == costs[-1].frozen_bytes
    assert own.flops == sum(15 * 3 * 64 * (cost.forward_flops + cost.backward_flops) for cost in costs)
    assert own.peak_bytes == max(cost.peak_bytes for cost in costs)
    assert reference.bytes_up == 90 * whole.exchanged_bytes
    assert json.loads(json.dumps(own.to_values()))["rounds"] == 90


def test_end_to_end_without_levers_saves_nothing() -> None:
    stages, costs, whole = bill("end_to_end", last_block="full")
    assert costs[0].to_values() | {"stage": 0} == whole.to_values()
    own, reference = schedule_costs(stages, costs=costs, end_to_end=whole, num_examples=64)
    assert own == reference


def test_rows() -> None:
    stages, costs, whole = bill(batch_size=32)
    table = rows(stages, costs=costs, end_to_end=whole, num_examples=100, device_bytes=parse_size("2GiB"))
    assert [row["stage"] for row in table] == [1, 2, 3, 4, 5, 6, "end_to_end", "total"]
    assert [row["fits"] for row in table[:-1]] == [True] * 6 + [False]
    assert table[-2]["exchange_factor"] == table[-2]["flops_factor"] == table[-2]["peak_factor"] == 1
    assert table[-1]["exchange_factor"] == pytest.approx(2.16, abs=0.005)
    assert "fits" not in rows(stages, costs=costs, end_to_end=whole, num_examples=100)[0]
    json.dumps(table)


def test_shares_of_the_parts_add_up() -> None:
    table = parts(bill()[1][-1])
    for share in ("exchange_share", "flops_share", "activations_share"):
        assert sum(row[share] for row in table) == pytest.approx(1)
    heads = next(row for row in table if row["part"] == "projection")
    assert heads["exchange_share"] == pytest.approx(0.832, abs=5e-4)


class Counter:
    """Counts like `lwfed.models.inspect.count`, and records how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, encoder: EncoderSpec) -> Mapping[str, Any]:
        self.calls += 1
        known = by_formulas(EncoderSpec(family="vit", arch="vit_tiny_patch16_224", config={"depth": 2}))
        assert known is not None
        return known.to_values()


def test_an_untabled_architecture_is_counted_once(tmp_path: Path) -> None:
    count, encoder = Counter(), EncoderSpec(family="vit", arch="vit_tiny_patch16_224", config={"reg_tokens": 1})
    first = architecture_of(encoder, folder=tmp_path / "cache", count=count)
    assert architecture_of(encoder, folder=tmp_path / "cache", count=count) == first
    assert (count.calls, first.depth) == (1, 2)
    file = tmp_path / "cache" / f"{cache_key(encoder)}.json"
    file.write_text("{}")
    assert architecture_of(encoder, folder=tmp_path / "cache", count=count) == first
    architecture_of(encoder, folder=None, count=count)
    assert count.calls == 3


def test_a_process_counts_an_architecture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counter()
    monkeypatch.setattr("lwfed.models.inspect.count", count)
    monkeypatch.setattr("lwfed.steps.prepare._COUNTED", {})
    one, other = (EncoderSpec(family="vit", arch="vit_tiny_patch16_224", config={"reg_tokens": n}) for n in (1, 2))
    assert count_architecture(one) == count_architecture(one) and count.calls == 1
    count_architecture(other)
    assert count.calls == 2


def test_a_tabled_model_is_not_counted(tmp_path: Path) -> None:
    count = Counter()
    assert architectures_of(RunSpec().model, folder=tmp_path, count=count).keys() == {"image", "text"}
    assert count.calls == 0
    assert not list(tmp_path.iterdir())


def test_the_cache_key_is_the_architecture_s_alone() -> None:
    one = EncoderSpec(family="vit", arch="vit_tiny_patch16_224", blocks_per_stage=1)
    assert cache_key(one) == cache_key(one.model_copy(update={"blocks_per_stage": 2}))
    assert cache_key(one) != cache_key(one.model_copy(update={"config": {"depth": 3}}))
