"""Laws of what levers save: each is the difference that leaving it out makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lwfed.cost.architectures import by_formulas
from lwfed.cost.explain import rows
from lwfed.cost.filling import Fill, fills
from lwfed.cost.fit import link_seconds
from lwfed.cost.ledger import end_to_end_cost, stage_costs
from lwfed.cost.levers import Saving, savings
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.run import RunSpec

EXAMPLES = 100


def planned(**values: Any) -> tuple[tuple[StagePlan, ...], dict[str, Any]]:
    spec = RunSpec.model_validate(values)
    found = {m: architecture for m, e in spec.model.encoders.items() if (architecture := by_formulas(e))}
    return plan_stages(spec, depths={m: a.depth for m, a in found.items()}), found


def of(lever: str, **values: Any) -> list[Saving]:
    stages, architectures = planned(**values)
    found = savings(stages, architectures=architectures, num_examples=EXAMPLES)
    return [saving for saving in found if saving.lever == lever]


def test_keeping_the_prefix_saves_its_weights_and_its_flops_but_for_filling() -> None:
    kept = of("levers.prefix_cache")
    assert [saving.stage for saving in kept] == [2, 3, 4, 5, 6]
    captions = 5 * (1 - 0.8**45)  # that 45 epochs draw of five
    stages, architectures = planned()
    never, _ = planned(levers={"prefix_cache": "never"})
    with_it, without = (stage_costs(plan, architectures=architectures) for plan in (stages, never))
    for saving, cost, other in zip(kept, with_it[1:], without[1:], strict=True):
        frozen = sum(bill.nbytes for bill in other.units if not bill.trained)
        assert saving.peak_bytes == other.peak_bytes - cost.peak_bytes == frozen
        assert saving.disk_bytes == EXAMPLES * round(4 * (4 * 197 * 192 + captions * 40 * 768))
        assert cost.flops < other.flops and saving.flops > 1
        assert saving.exchanged_bytes == 0
    new = [unit for unit in without[1].units if not unit.trained]
    views = {"image": 4, "text": captions}
    assert with_it[1].fill_flops == round(sum(views[unit.unit.split(".")[0]] * unit.forward_flops for unit in new))
    assert with_it[2].fill_flops < with_it[1].fill_flops + with_it[1].flops, "only newly frozen blocks are applied"


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"strategy": "progressive"}, []),
        ({"strategy": "end_to_end"}, []),
        ({"stages": {"rounds": [9, 0, 0, 0, 0, 1]}}, []),  # three epochs are fewer than four views and five captions
        ({"stages": {"rounds": [1] * 6}, "training": {"local_epochs": 1}}, [("image",)] * 5),
        ({"stages": {"rounds": [2] * 6}}, [("image", "text")] * 5),
        ({"stages": {"rounds": [0, 0, 0, 1, 0, 1]}}, [("image", "text")] * 2),  # neither of both would pay alone
        ({"levers": {"views": 0}}, [("text",)] * 5),
        ({"stages": {"rounds": [0, 0, 0, 0, 0, 2]}}, [("image", "text")]),
        ({"training": {"local_steps": 5}}, []),
        ({"training": {"local_steps": 5}, "levers": {"prefix_cache": "always"}}, [("image", "text")] * 5),
        ({"data": {"augment": False}, "stages": {"rounds": [1, 0, 0, 0, 0, 1]}}, [("image",)]),
    ],
)
def test_a_prefix_is_cached_if_it_would_be_computed_more_often_than_it_has_views(
    values: dict[str, Any], kept: list[tuple[str, ...]]
) -> None:
    stages, _ = planned(**values)
    assert [tuple(stage.levers.views) for stage in stages if stage.levers.views] == kept


VIT = {"family": "vit", "arch": "vit_tiny_patch16_224", "blocks_per_stage": 2}
RESNET = {"family": "resnet", "arch": "resnet18", "blocks_per_stage": [1, 1, 1, 1, 0, 0]}
BERT = {"family": "bert", "blocks_per_stage": 2}
MOBILE = {"family": "mobilebert", "blocks_per_stage": 4}
ABSORBED = "one token, K and V absorbed"


@pytest.mark.parametrize(
    ("image", "text", "last_block", "said"),
    [
        (VIT, BERT, "auto", ABSORBED),
        (VIT, BERT, "row", "one token"),
        (VIT, MOBILE, "auto", f"one token (text) and {ABSORBED} (image)"),
        (VIT, MOBILE, "row", "one token"),
        (RESNET, MOBILE, "absorbed", "one token"),
        (RESNET, BERT, "auto", ABSORBED),
        (VIT, MOBILE, "full", None),
    ],
)
def test_a_last_block_is_said_to_be_computed_as_it_is(
    image: dict[str, Any], text: dict[str, Any], last_block: str, said: str | None
) -> None:
    found = of(
        "levers.last_block", model={"encoders": {"image": image, "text": text}}, levers={"last_block": last_block}
    )
    assert [saving.how for saving in found] == ([] if said is None else [said] * 6)


def test_a_last_block_that_is_frozen_is_no_lever() -> None:
    image = {**VIT, "blocks_per_stage": [12, 0, 0, 0, 0, 0]}
    model = {"encoders": {"image": image, "text": MOBILE}}
    assert [saving.how for saving in of("levers.last_block", model=model)][1:] == ["one token"] * 5


def test_a_stage_goes_on_from_what_the_one_before_has_kept() -> None:
    _, architectures = planned()

    def costs(rounds: list[int]) -> list[Any]:
        stages, _ = planned(stages={"rounds": rounds}, training={"local_epochs": 1}, data={"augment": False})
        return stage_costs(stages, architectures=architectures)

    fewer = costs([1, 1, 6, 1, 1, 1])
    assert fewer[3].newly_frozen_bytes == fewer[3].frozen_bytes - fewer[2].frozen_bytes, "the others stay on the disk"
    assert 0 < fewer[3].cache_bytes < fewer[2].cache_bytes, "one epoch draws fewer captions than six"
    first = costs([1, 0, 0, 6, 6, 1])
    whole = sum(unit.forward_flops for unit in first[3].units if unit.unit.endswith("blocks.0"))
    assert first[3].fill_flops > whole, "all blocks, of more than one caption"
    assert first[4].fill_flops < 0.7 * first[3].fill_flops, "mostly those that are newly frozen"


def test_formats_cost_bytes_and_nothing_else() -> None:
    """Rows of 192 and 768 values; int8 has a scale for each."""
    plain, others = costs_as("fp32"), {codec: costs_as(codec) for codec in ("bf16", "int8")}
    captions = 5 * (1 - 0.8**45)
    for codec, image, text in (("bf16", 384, 1536), ("int8", 196, 772)):
        for cost, other in zip(plain[1:], others[codec][1:], strict=True):
            assert other.cache_bytes == round(4 * 197 * image + captions * 40 * text)
            assert other.read_bytes == 197 * image + 40 * text
            same = {"cache_bytes": cost.cache_bytes, "read_bytes": cost.read_bytes}
            assert replace(other, **same) == cost
    (saving, *_) = of("levers.prefix_dtype", levers={"prefix_dtype": "int8"})
    assert saving.stage == 2 and saving.how == "these outputs as int8"
    assert saving.disk_bytes == EXAMPLES * (others["int8"][1].cache_bytes - plain[1].cache_bytes) < 0
    assert not of("levers.prefix_dtype") and not of("levers.prefix_dtype", strategy="end_to_end")


def costs_as(codec: str) -> list[StageCost]:
    stages, architectures = planned(levers={"prefix_dtype": codec})
    return stage_costs(stages, architectures=architectures)


def test_stages_compute_what_they_draw_from_what_was_drawn_before() -> None:
    """One epoch each: stage 6 draws another view of an image than stage 5, and a fifth of its captions."""
    stages, architectures = planned(
        stages={"rounds": [0, 0, 0, 0, 1, 1]}, training={"local_epochs": 1}, levers={"prefix_cache": "always"}
    )
    fifth, sixth = fills(stages)[4:]
    assert fifth == {"image": Fill(1.0, {0: 1.0}), "text": Fill(pytest.approx(1.0), {0: pytest.approx(1.0)})}
    assert sixth["image"] == Fill(1.0, {0: 1.0})
    assert sixth["text"].computed == {0: pytest.approx(0.8), 5: pytest.approx(0.2)}
    costs = stage_costs(stages, architectures=architectures)
    each = costs[5].fill_from
    said = each["image"]["0"] + 0.8 * each["text"]["0"] + 0.2 * each["text"]["5"]
    assert costs[5].fill_flops == pytest.approx(said, abs=1)
    assert each["text"]["5"] < each["text"]["0"] / 4
    steps, _ = planned(training={"local_steps": 5}, levers={"prefix_cache": "always"})
    assert fills(steps)[1]["text"].kept == 5, "their epochs are unknown: the most"


def test_a_stage_that_freezes_no_more_adds_to_what_is_kept() -> None:
    image = {**VIT, "blocks_per_stage": [2, 10, 0, 0, 0, 0]}
    text = {"family": "distilbert", "blocks_per_stage": 1}
    stages, _ = planned(
        model={"encoders": {"image": image, "text": text}}, stages={"rounds": [1, 0, 1, 1, 1, 1]},
        training={"local_epochs": 1}, levers={"prefix_cache": "always"},
    )  # fmt: skip
    assert [fill["image"] for fill in fills(stages)[2:]] == [
        Fill(1.0, {0: 1.0}), Fill(2.0, {0: 1.0}), Fill(3.0, {0: 1.0}), Fill(4.0, {0: 1.0}),
    ]  # fmt: skip


def test_rows_say_what_a_disk_and_a_link_have_to_take() -> None:
    stages, architectures = planned()
    costs = stage_costs(stages, architectures=architectures)
    whole = end_to_end_cost(stages, architectures=architectures)
    room = EXAMPLES * costs[1].cache_bytes
    for disk, fits in ((room, True), (room - 1, False)):
        table = rows(
            stages, costs=costs, end_to_end=whole, num_examples=EXAMPLES, disk_bytes=disk, link_mbps=80
        )  # fmt: skip
        assert [row["cache_fits"] for row in table[:6]] == [True, *[fits] * 5]
        assert table[5]["link_s"] == pytest.approx(2 * costs[5].exchanged_bytes / 10e6)
        assert table[6]["cache_bytes"] == 0
    assert link_seconds(costs[0], link_mbps=8) == pytest.approx(2 * costs[0].exchanged_bytes / 1e6)
