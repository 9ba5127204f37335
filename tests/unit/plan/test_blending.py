"""Laws of hierarchical gradient blending: weights computed by hand, and those where there is nothing to go by."""

from __future__ import annotations

import math

import pytest

from lwfed.plan.blending import (
    ONE,
    Losses,
    blended,
    client_factors,
    head_weights,
    losses_of,
    ratio,
    rounds_compared,
)
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.plan.units import group_of, units_of
from lwfed.round.senders import Counted, weights_of
from lwfed.spec.load import build_spec
from lwfed.spec.model import BlendingSpec
from lwfed.types.errors import SpecError
from tests.tiny import DEPTHS, VALUES

PURE = BlendingSpec(least_weight=0)
BLENDING = "model.objective={kind: supervised, blending: {}}"
EVALUATION = "evaluation={holdout_fraction: 0.3, federated_every: 1}"
LONG = "stages.rounds=[4,3]"
BEFORE = {"fused": Losses(1.5, 1.75), "image": Losses(2.0, 2.0), "text": Losses(1.0, 1.25)}
AFTER = {"fused": Losses(1.0, 1.5), "image": Losses(1.0, 1.5), "text": Losses(0.5, 1.0)}


def plan_of(*overrides: str) -> StagePlan:
    spec = build_spec(VALUES, overrides=[BLENDING, EVALUATION, LONG, *overrides])
    return plan_stages(spec, depths=DEPTHS)[-1]


def test_by_hand() -> None:
    """Fused: G = 1/4, O from 1/4 to 1/2: 1/4; image: G = 1/2, O from 0 to 1/2: 1/2; text: as the fused head."""
    ratios = [ratio(BEFORE[head], AFTER[head], least=0.01) for head in BEFORE]
    assert ratios == [0.25 / 0.25**2, 0.5 / 0.5**2, 0.25 / 0.25**2] == [4, 2, 4]
    weights = head_weights(BEFORE, AFTER, settings=PURE)
    assert weights == pytest.approx({"fused": 1.2, "image": 0.6, "text": 1.2}) and sum(weights.values()) == 3


def test_it_is_the_published_formula_up_to_a_factor() -> None:
    """G / O^2, over Z = sum of G / (2 O^2): those weights sum to 2, these to the number of heads."""
    overfitting = {head: (after.held_out - after.fitted) - (BEFORE[head].held_out - BEFORE[head].fitted)
                   for head, after in AFTER.items()}  # fmt: skip
    terms = {h: (BEFORE[h].held_out - AFTER[h].held_out) / o**2 for h, o in overfitting.items()}
    published = {head: term / sum(t / 2 for t in terms.values()) for head, term in terms.items()}
    found = head_weights(BEFORE, AFTER, settings=PURE)
    assert {head: weight * 3 / 2 for head, weight in published.items()} == pytest.approx(found)


@pytest.mark.parametrize("count", range(2, 7))
@pytest.mark.parametrize("least", [0, 0.1, 0.3])
def test_equal_ratios_give_the_plain_sum(count: int, least: float) -> None:
    heads = [str(n) for n in range(count)]
    before, after = dict.fromkeys(heads, Losses(1.7, 1.9)), dict.fromkeys(heads, Losses(1.1, 1.6))
    assert head_weights(before, after, settings=BlendingSpec(least_weight=least)) == dict.fromkeys(heads, 1.0)


def test_a_head_that_gained_nothing_has_the_least_weight() -> None:
    after = {**AFTER, "image": Losses(0.1, 2.5)}
    assert head_weights(BEFORE, after, settings=PURE)["image"] == 0
    found = head_weights(BEFORE, after, settings=BlendingSpec(least_weight=0.25))
    assert found == pytest.approx({"fused": 0.25 + 0.75 * 1.5, "image": 0.25, "text": 0.25 + 0.75 * 1.5})


def test_if_no_head_gained_anything_losses_are_summed() -> None:
    assert head_weights(AFTER, BEFORE, settings=PURE) == dict.fromkeys(BEFORE, 1.0)
    assert head_weights({}, {}, settings=PURE) == {}


def test_without_overfitting_a_weight_stays_finite() -> None:
    after = {**AFTER, "text": Losses(0.75, 1.0)}  # its held-out loss falls as much as the other
    assert ratio(BEFORE["text"], after["text"], least=0.125) == 0.25 / 0.125**2
    assert all(map(math.isfinite, head_weights(BEFORE, after, settings=PURE).values()))


def test_heads_that_were_measured_once_are_left_out() -> None:
    after = {head: AFTER[head] for head in ("fused", "image")}
    assert head_weights(BEFORE, after, settings=PURE) == pytest.approx({"fused": 4 / 3, "image": 2 / 3})


def test_clients_count_by_their_blended_loss() -> None:
    """Two clients with one head each: ratios 4 and 2, so factors of 4/3 and 2/3; one that was not measured has 1."""
    before, after = ({"a": {"fused": t["fused"]}, "b": {"fused": t["image"]}} for t in (BEFORE, AFTER))
    weights = {"a": {"fused": 1.0}, "b": {"fused": 1.0}}
    found = client_factors(["a", "b", "c"], weights, before=before, after=after, settings=PURE)
    assert found == {"a": round(ONE * 4 / 3), "b": round(ONE * 2 / 3), "c": ONE}
    whole = blended(BEFORE, {"fused": 2.0, "image": 0.5, "text": 0.0})
    assert whole == Losses(2 * 1.5 + 0.5 * 2.0, 2 * 1.75 + 0.5 * 2.0)


def test_a_client_that_gained_nothing_still_counts() -> None:
    before, after = {"a": BEFORE, "b": AFTER}, {"a": AFTER, "b": BEFORE}
    weights = dict.fromkeys(("a", "b"), dict.fromkeys(BEFORE, 1.0))
    found = client_factors(["a", "b"], weights, before=before, after=after, settings=PURE)
    assert found == {"a": 2 * ONE, "b": 1}


@pytest.mark.parametrize("sizes", [[7, 5], [12, 18, 30]])
@pytest.mark.parametrize("gained", [True, False])
def test_equal_clients_are_fedavg(sizes: list[int], gained: bool) -> None:
    plan, clients = plan_of(), [f"client-{n:03d}" for n in range(len(sizes))]
    before, after = dict.fromkeys(clients, BEFORE), dict.fromkeys(clients, AFTER if gained else BEFORE)
    weights = dict.fromkeys(clients, dict.fromkeys(BEFORE, 1.0))
    factors = client_factors(clients, weights, before=before, after=after, settings=BlendingSpec())
    plain = {client: Counted(size, {"text": 3}) for client, size in zip(clients, sizes, strict=True)}
    factored = {
        client: Counted(one.num_examples, one.examples, factor=factors[client]) for client, one in plain.items()
    }
    assert weights_of(plan, factored) == weights_of(plan, plain)


def test_factors_multiply_every_weight_of_a_client() -> None:
    plan, clients = plan_of(), ["client-000", "client-001"]
    counted = {client: Counted(6, {"text": 4}, factor=n) for n, client in enumerate(clients, start=2)}
    found = weights_of(plan, counted)
    assert [one.weight for one in found.values()] == [6, 9]
    assert [one.by_unit["text.prediction"] for one in found.values()] == [4, 6]


@pytest.mark.parametrize(
    ("every", "server_round", "expected"),
    [(1, 1, None), (1, 2, None), (1, 3, (1, 2)), (1, 9, (7, 8)), (3, 6, None), (3, 7, (3, 6)), (3, 9, (3, 6)),
     (3, 10, (6, 9))],
)  # fmt: skip
def test_the_last_two_evaluations_decide(every: int, server_round: int, expected: tuple[int, int] | None) -> None:
    plan = plan_of("stages.rounds=[9,9]", f"evaluation.federated_every={every}")
    assert rounds_compared(plan, server_round) == expected
    assert rounds_compared(plan_of("model.objective.blending=null", "evaluation={}"), server_round) is None


def test_losses_are_read_from_what_a_client_reports() -> None:
    reported = {"federated/loss": 2.0, "fitted/loss": 1.0, "federated/image/loss": 3.0, "fitted/image/loss": 2.5,
                "federated/text/loss": math.nan, "fitted/text/loss": 1.0, "federated/accuracy": 0.5}  # fmt: skip
    assert losses_of(reported, modalities=("image", "text")) == {"fused": (1.0, 2.0), "image": (2.5, 3.0)}
    assert losses_of({"federated/loss": 2.0}, modalities=("image",)) == {}


def test_heads_of_single_modalities_are_units_at_the_prediction_heads_rate() -> None:
    plan = plan_of("training.learning_rates={prediction: 0.5}")
    assert set(plan.present) - set(units_of(plan_of("model.objective.blending=null").model, DEPTHS)) == {
        "image.prediction", "text.prediction"
    }  # fmt: skip
    assert {"image.prediction", "text.prediction"} <= set(plan.trained)
    assert group_of("image.prediction") == "prediction" and plan.rates["prediction"].learning_rate == 0.5


def test_a_plan_without_blending_does_not_name_it() -> None:
    dumped = plan_of("model.objective.blending=null").model_dump(mode="json")
    assert "blending" not in dumped["model"]["objective"]


@pytest.mark.parametrize("clients", ["true", "false"])
def test_weights_that_depend_on_losses_are_not_known_in_advance(clients: str) -> None:
    assert plan_of(f"model.objective.blending.clients={clients}").settled is (clients == "false")


def test_a_gate_may_watch_a_single_modality() -> None:
    plan = plan_of("stages.gate={metric: validation/image/accuracy}")
    assert plan.gate is not None
    with pytest.raises(SpecError, match=r"stages\.gate\.metric"):
        plan_of("stages.gate={metric: validation/image/accuracy}", "model.objective.blending=null")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["evaluation={}"], "evaluation.federated_every"),
        (["evaluation={holdout_fraction: 0.3}"], "evaluation.federated_every"),
        (["evaluation.federated_every=2"], "stages.rounds"),
        (["stages.rounds=[2,2]"], "stages.rounds"),
        (["model.objective={kind: contrastive, blending: {}}"], "model.objective.blending"),
        (["model.objective.blending={least_overfitting: 0}"], "least_overfitting"),
        (["model.objective.blending={least_weight: 1}"], "least_weight"),
        (["model.objective.blending={least_weight: -0.1}"], "least_weight"),
        (["model.objective.blending={client: false}"], "model.objective.blending.clients"),
        (["model={encoders: {text: {family: distilbert}}, objective: {kind: supervised, blending: {}}}"], "2 encoders"),
    ],
)
def test_nonsense_is_refused_by_name(overrides: list[str], named: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(VALUES, overrides=[BLENDING, EVALUATION, LONG, *overrides])
    assert named in str(caught.value)
