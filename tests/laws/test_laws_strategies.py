"""Laws of the strategies: what is not trained does not change, and with one stage they are one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lwfed.models.build import initial_tensors
from lwfed.plan.units import group_of, is_adapter
from lwfed.run import runs
from lwfed.spec.run import STRATEGIES
from lwfed.store import paths
from lwfed.types.tensors import unit_of
from tests.tiny import ENCODERS, ONE_STAGE, Finished, run_tiny, tensor_digests, tensors_of

OTHERS = ENCODERS["resnet-mobilebert"]


@pytest.mark.parametrize("last_block", ["full", "row", "absorbed"])
def test_with_one_stage_all_strategies_are_one(tmp_path: Path, last_block: str) -> None:
    lever = f"levers.last_block={last_block}"
    done = {s: run_tiny(tmp_path / s, *ONE_STAGE, f"strategy={s}", lever) for s in STRATEGIES}
    assert len({run.digest for run in done.values()}) == 1
    assert len({run.keys[0] for run in done.values()}) == len(STRATEGIES), "and yet they are several plans"
    rounds = {tuple(record["digest"] for record in run.reported("round")) for run in done.values()}
    assert len(rounds) == 1, "round by round"


def test_end_to_end_is_one_stage_of_all_rounds(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "a", "strategy=end_to_end")
    one = run_tiny(tmp_path / "b", *ONE_STAGE, "stages.rounds=[4]", "strategy=end_to_end")
    assert whole.digest == one.digest and len(whole.summary["stages"]) == 1


@pytest.mark.parametrize(("window", "strategy"), [(1, "layerwise"), (2, "progressive"), (5, "progressive")])
def test_the_smallest_window_is_layerwise_and_the_largest_progressive(
    tmp_path: Path, window: int, strategy: str
) -> None:
    fewer = "stages.rounds=[1,1]"
    named = run_tiny(tmp_path / "named", f"strategy={strategy}", fewer)
    done = run_tiny(tmp_path / "window", "strategy=window", f"stages.window={window}", fewer)
    assert done.digest == named.digest and done.run.predicted == named.run.predicted
    selections = [
        [(plan.present, plan.trained, plan.appended, plan.cut, plan.levers) for plan in run.plans]
        for run in (named, done)
    ]
    assert selections[0] == selections[1]
    assert done.run.strategy == f"window {window}"


def test_a_window_trains_the_latest_groups_and_leaves_the_others_bit_equal(tmp_path: Path) -> None:
    """Three groups of one block each: at stage 3 the first is frozen, with the stem."""
    deeper = (
        "strategy=window", "stages.rounds=[1,1,1]",
        "model.encoders.image.config.depth=3", "model.encoders.text.config.n_layers=3",
    )  # fmt: skip
    done = run_tiny(tmp_path, *deeper)
    assert [plan.cut for plan in done.plans] == [{"image": 0, "text": 0}] * 2 + [{"image": 1, "text": 1}]
    before, after = tensor_digests(done.checkpoint(3, 0)), tensor_digests(done.checkpoint(3))
    changed = {unit_of(name) for name in after if after[name] != before[name]}
    assert changed == set(done.plans[2].trained)
    assert done.plans[2].frozen == ("image.stem", "image.blocks.0", "text.stem", "text.blocks.0")


@pytest.mark.parametrize("server_round", [1, 2])
def test_frozen_blocks_are_bit_equal_before_and_after_a_round(finished: Finished, server_round: int) -> None:
    plan = finished.plans[1]
    assert plan.frozen == ("image.stem", "image.blocks.0", "text.stem", "text.blocks.0")
    before, after = finished.checkpoint(2, server_round - 1), finished.checkpoint(2, server_round)
    for unit in plan.frozen:
        assert after.blocks[unit].to_values() == before.blocks[unit].to_values() == stage_one(finished, unit)
    changed = {unit_of(n) for n, d in tensor_digests(after).items() if d != tensor_digests(before)[n]}
    assert changed == set(plan.trained), "and all that is trained did change"


def test_frozen_tensors_are_equal_in_value_too(finished: Finished) -> None:
    first = tensors_of(finished.store, finished.checkpoint(1))
    last = tensors_of(finished.store, finished.checkpoint(2))
    frozen = {name for name in first if unit_of(name) in finished.plans[1].frozen}
    assert frozen and all(torch.equal(first[name], last[name]) for name in frozen)
    heads = {name for name in first if unit_of(name) == "image.projection"}
    assert all(not torch.equal(first[name], last[name]) for name in heads), "heads are trained at every stage"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A ResNet and a MobileBERT instead of ViT and DistilBERT."""
    return run_tiny(tmp_path_factory.mktemp("resnet"), "store.keep_rounds=0", *OTHERS)


def test_a_frozen_batchnorm_has_fixed_statistics_and_a_trained_one_averages_its_own(resnet: Finished) -> None:
    frozen, trained = ({f"image.{unit}" for unit in units} for units in (("stem", "blocks.0"), ("blocks.1",)))
    assert frozen < set(resnet.plans[1].frozen) and trained < set(resnet.plans[1].trained)
    rounds = [resnet.checkpoint(2, number) for number in range(3)]
    for before, after in pairwise(tensors_of(resnet.store, checkpoint) for checkpoint in rounds):
        statistics = {name for name in after if ".running_" in name or name.endswith(".num_batches_tracked")}
        for unit, still in (*((unit, True) for unit in frozen), *((unit, False) for unit in trained)):
            own = [name for name in statistics if unit_of(name) == unit]
            assert own and all(torch.equal(before[name], after[name]) is still for name in own)
    seen = tensors_of(resnet.store, rounds[0])["image.stem.bn1.num_batches_tracked"]
    assert int(seen) == sum(2 for _ in range(resnet.plans[0].rounds)), "the most batches of a client in each round"


def test_an_adapter_lasts_as_long_as_its_depth(resnet: Finished) -> None:
    """It is trained with the head's rate, dropped when blocks are appended, and absent where the widths agree."""
    first, second = resnet.plans
    assert "image.adapter.1" in set(first.trained) & set(first.appended) and second.rates.keys() == first.rates.keys()
    assert not any(is_adapter(unit) for unit in second.present)
    drawn, ended = (tensors_of(resnet.store, resnet.checkpoint(1, number)) for number in (0, 2))
    name = "image.adapter.1.weight"
    assert drawn[name].shape == (12, 8) and not torch.equal(drawn[name], ended[name])
    assert group_of("image.adapter.1") == "projection"
    start, result = tensor_digests(resnet.checkpoint(2, 0)), tensor_digests(resnet.checkpoint(1))
    assert {n for n in result if start.get(n) != result[n]} == {name}, "all else goes on as it was, the head included"
    assert set(resnet.checkpoint(2).blocks) == set(second.present)


def test_each_depth_has_its_own_adapter_until_the_widths_agree(tmp_path: Path) -> None:
    """Four stages of a ResNet; the text encoder has grown before."""
    config = "img_size: 16, layers: [2, 1, 1, 1], channels: [4, 6, 8, 8]"
    image = f"model.encoders.image={{family: resnet, arch: resnet18, config: {{{config}}}}}"
    text = "model.encoders.text.blocks_per_stage=[1, 1, 0, 0]"
    done = run_tiny(tmp_path, image, text, "stages.rounds=[1, 0, 1, 1]", "levers.prefix_cache=always")
    adapters = [[unit for unit in plan.present if is_adapter(unit)] for plan in done.plans]
    assert adapters == [["image.adapter.1"], ["image.adapter.2"], [], []]
    kept = [m["prefix"] for r in done.reported("round") for m in r["clients"].values() if "prefix" in m]
    assert kept == [{"image": "filled", "text": "filled"}] * 4, "stage 4 adds the captions that stage 3 has not drawn"
    measured = [m["prefix_cache_bytes"] for r in done.reported("round") for m in r["clients"].values() if "prefix" in m]
    captions = 24 * 4 * sum(cost["cache_bytes"] for cost in done.run.predicted)
    assert 0 < sum(measured) < captions
    assert [cost["cache_bytes"] for cost in done.run.predicted][3] > 0


def test_strategies_of_growing_widths_agree_where_they_must(tmp_path: Path) -> None:
    one = (*OTHERS, *ONE_STAGE)
    assert len({run_tiny(tmp_path / s, *one, f"strategy={s}").digest for s in STRATEGIES}) == 1
    done = run_tiny(tmp_path / "grown", *OTHERS, "strategy=progressive", "stages.rounds=[1,1]")
    before, after = tensor_digests(done.checkpoint(2, 0)), tensor_digests(done.checkpoint(2))
    assert {unit_of(name) for name in after if after[name] != before[name]} == set(done.plans[1].present)


def test_what_a_stage_starts_from_is_the_result_of_the_stage_before(finished: Finished) -> None:
    result, start = tensor_digests(finished.checkpoint(1)), tensor_digests(finished.checkpoint(2, 0))
    assert {name: start[name] for name in result} == result
    assert {unit_of(name) for name in start.keys() - result} == {"image.blocks.1", "text.blocks.1"}
    assert finished.summary["stages"][1]["digest"] == finished.checkpoint(2).digest


def test_progressive_trains_everything_that_is_present(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "strategy=progressive", "stages.rounds=[1,1]")
    before, after = tensor_digests(done.checkpoint(2, 0)), tensor_digests(done.checkpoint(2))
    changed = {unit_of(name) for name in after if after[name] != before[name]}
    assert changed == set(done.plans[1].present)


@pytest.mark.parametrize("rounds", ["[0,2]", "[2,0]"])
def test_a_stage_without_rounds_appends_its_blocks_as_they_are_drawn(tmp_path: Path, rounds: str) -> None:
    done = run_tiny(tmp_path, f"stages.rounds={rounds}")
    untrained = 1 if rounds == "[0,2]" else 2
    plan = done.plans[untrained - 1]
    checkpoint = done.checkpoint(untrained)
    assert done.summary["stages"][untrained - 1]["rounds"] == 0
    drawn = initial_tensors(
        runs.spec_of(done.run).model, units=plan.appended, depth=plan.depth, num_classes=None, seed=plan.seed
    )
    stored = tensors_of(done.store, checkpoint)
    assert drawn.keys() <= stored.keys()
    for name, tensor in drawn.items():
        assert torch.equal(stored[name], tensor), name
    if untrained == 2:
        before = tensor_digests(done.checkpoint(1))
        assert {n: d for n, d in tensor_digests(checkpoint).items() if n in before} == before
    else:
        final = tensor_digests(done.checkpoint(2))
        frozen = {n: d for n, d in tensor_digests(checkpoint).items() if unit_of(n) in done.plans[1].frozen}
        assert frozen and {n: final[n] for n in frozen} == frozen, "drawn, frozen, never trained"


def test_rounds_are_counted_over_all_stages(finished: Finished) -> None:
    numbers = [(r["stage"], r["round"], r["global_round"]) for r in finished.reported("round")]
    assert numbers == [(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 4)]
    assert finished.store.has(paths.stage_checkpoint(finished.keys[1]))


def test_the_seed_changes_everything_and_the_place_nothing(finished: Finished, tmp_path: Path) -> None:
    assert run_tiny(tmp_path / "a", "seed=1").digest != finished.digest
    assert run_tiny(tmp_path / "b", "data.workers=1", "evaluation.batch_size=3").digest == finished.digest


def stage_one(finished: Finished, unit: str) -> dict[str, object]:
    return finished.checkpoint(1).blocks[unit].to_values()
