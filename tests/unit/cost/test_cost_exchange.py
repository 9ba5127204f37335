"""Laws of the exchange's price: from shapes alone, and over the cohorts that the seed draws."""

from __future__ import annotations

import pytest

from lwfed.cost.architectures import architectures_of
from lwfed.cost.exchange import download_bytes, file_bytes, mean_download_bytes
from lwfed.cost.ledger import end_to_end_cost, stage_costs
from lwfed.cost.schedule import schedule_costs
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.load import load_spec
from lwfed.steps.prepare import count_architecture
from lwfed.types.encoded import Codec
from lwfed.types.tensors import TensorSpec, layout
from tests.tiny import DEPTHS, tiny_spec


def plan(*overrides: str) -> StagePlan:
    return plan_stages(tiny_spec("unused", "exchange.download=int8", *overrides), depths=DEPTHS)[0]


def test_a_files_bytes_are_its_items_scales_and_header() -> None:
    specs = {"w": TensorSpec((4, 6)), "b": TensorSpec((6,)), "n": TensorSpec((), "I64", buffer=True)}
    items: dict[Codec, int] = {"fp32": 4 * 30 + 8, "bf16": 2 * 30 + 8, "int8": 30 + 4 * 5 + 8}
    header = {codec: file_bytes([specs], codec) - size for codec, size in items.items()}
    assert header["fp32"] == len(layout(specs).header) and all(size % 8 == 0 for size in header.values())
    assert header["int8"] > header["bf16"] > 0, "two scales more are named"
    assert file_bytes([specs, specs], "int8") == 2 * file_bytes([specs], "int8")


def test_a_client_that_is_always_there_fetches_the_model_once() -> None:
    assert [download_bytes(rounds, snapshot=100, change=30) for rounds in (0, 1, 2, 5)] == [0, 100, 130, 220]
    assert mean_download_bytes(plan("stages.rounds=[5,0]"), snapshot=100, change=30) == 220 / 5
    assert mean_download_bytes(plan("stages.rounds=[1,0]"), snapshot=100, change=30) == 100


@pytest.mark.parametrize(("fraction", "least", "most"), [(0.1, 85, 100), (0.5, 55, 75), (0.9, 36, 45)])
def test_the_rarer_a_client_the_more_it_fetches(fraction: float, least: float, most: float) -> None:
    stage = plan("stages.rounds=[40,0]", "federation.num_clients=40", f"federation.fraction_fit={fraction}")
    assert least < mean_download_bytes(stage, snapshot=100, change=30) < most


@pytest.mark.parametrize("name", ["coco", "advance", "shapes"])
def test_a_lean_preset_sends_a_fraction_of_its_own(name: str) -> None:
    costs = {}
    for kind in ("layerwise", "layerwise-lean"):
        spec = load_spec(f"{name}-{kind}")
        architectures = architectures_of(spec.model, folder=None, count=count_architecture)
        plans = plan_stages(spec, depths={m: item.depth for m, item in architectures.items()})
        priced = stage_costs(plans, architectures=architectures, num_classes=13)
        whole = end_to_end_cost(plans, architectures=architectures, num_classes=13)
        costs[kind] = priced, schedule_costs(plans, costs=priced, end_to_end=whole, num_examples=100), whole
    (wide, (_, _), _), (lean, (own, reference), whole) = costs["layerwise"], costs["layerwise-lean"]
    assert wide[-1].upload_bytes == wide[-1].snapshot_bytes == wide[-1].change_bytes == wide[-1].download_bytes
    assert lean[-1].upload_bytes == lean[-1].change_bytes < lean[-1].snapshot_bytes / 3.5
    assert lean[-1].upload_bytes < wide[-1].upload_bytes / (4 if name == "shapes" else 15)
    assert whole.upload_bytes == whole.snapshot_bytes, "the reference is end to end as it is"
    assert own.bytes_up < own.bytes_down < reference.bytes_down
