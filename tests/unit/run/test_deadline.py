"""Laws of deadlines by rates: the largest of the clients', none while a rate is unknown, never less than a minute."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lwfed.run.deadline import LEAST_S, OTHER_SLACK, SLACK, Deadlines, Pace, deadline_of, slowest_rates, work_flops
from lwfed.run.runs import spec_of
from lwfed.spec.load import build_spec
from lwfed.types.errors import SpecError
from lwfed.types.records import RunRecord
from tests.tiny import VALUES, Finished

COST: dict[str, Any] = {"stage": 1, "forward_flops": 10, "backward_flops": 20, "fill_flops": 100}
WEAK = {"forward_flops": 1, "backward_flops": 2, "fill_flops": 0}


def test_work_is_examples_times_epochs_and_filling_once() -> None:
    assert work_flops(COST, kind="", examples=4, epochs=3) == 4 * 3 * 30
    assert work_flops(COST, kind="", examples=4, epochs=3, first=True) == 4 * 3 * 30 + 4 * 100
    grouped = {**COST, "kinds": {"weak": WEAK}}
    assert work_flops(grouped, kind="weak", examples=4, epochs=3, first=True) == 4 * 3 * 3
    assert work_flops(grouped, kind="others", examples=4, epochs=3) == 4 * 3 * 30


def test_a_round_has_the_largest_deadline_of_its_clients() -> None:
    paces = [Pace(flops=1000, rate=1), Pace(flops=1000, rate=2)]
    assert deadline_of(paces) == SLACK * 1000
    assert deadline_of([*paces, Pace(flops=1000, rate=2, turns=3)]) == 3 * SLACK * 500
    assert deadline_of([Pace(flops=1000, rate=1, slack=OTHER_SLACK)]) == OTHER_SLACK * 1000
    assert deadline_of([Pace(flops=1, rate=1)]) == LEAST_S
    assert deadline_of([*paces, Pace(flops=1, rate=None)]) == math.inf


def test_the_slowest_round_is_what_counts(finished: Finished) -> None:
    plan, cost = finished.plans[0], finished.run.predicted[0]
    records = [record for record in _rounds(finished) if record.stage == 1]
    rates = slowest_rates(records, plan, cost=cost)
    assert set(rates) == {"client-000", "client-001"}
    for client, rate in rates.items():
        flops = 12 * (cost["forward_flops"] + cost["backward_flops"])
        assert rate == pytest.approx(flops / max(record.clients[client].wall_s for record in records))
    unmeasured = [r.changed(clients={c: m.changed(wall_s=0.0) for c, m in r.clients.items()}) for r in records]
    assert slowest_rates(unmeasured, plan, cost=cost) == {}


def test_a_stages_deadlines_follow_from_its_rounds_and_from_the_stage_before(finished: Finished) -> None:
    run, store = finished.run, finished.store
    spec = build_spec({**VALUES, "launch": {"kind": "agents"}}, overrides=["federation.round_timeout_s=auto"])
    noted = RunRecord.of(store.read_ref(f"runs/{run.run_id}/run.json"))
    clients = ("client-000", "client-001")
    first = Deadlines(noted, spec, finished.plans[0], store=store)
    assert first.of(clients, []) == math.inf, "nobody has trained yet"
    records = [record for record in _rounds(finished) if record.stage == 1]
    assert LEAST_S <= first.of(clients, records[:1]) < math.inf
    slow = [r.changed(clients={c: m.changed(wall_s=1e4) for c, m in r.clients.items()}) for r in records]
    assert first.of(clients, slow) == pytest.approx(SLACK * 1e4)
    assert first.of((*clients, "client-007"), slow) == math.inf
    second = Deadlines(noted, spec, finished.plans[1], store=store)
    rates = slowest_rates(records, finished.plans[0], cost=noted.predicted[0])
    flops = work_flops(noted.predicted[1], kind="", examples=12, epochs=1, first=True)
    expected = max(LEAST_S, OTHER_SLACK * flops / min(rates.values()))
    assert second.of(clients, []) == pytest.approx(expected), "by the rates of stage 1"
    elsewhere = Deadlines(noted.changed(run_id="another"), spec, finished.plans[1], store=store)
    assert elsewhere.of(clients, []) == math.inf, "another run's clients may have been on other machines"
    unpriced = Deadlines(noted.changed(predicted=[]), spec, finished.plans[0], store=store)
    assert unpriced.of(clients, records) == math.inf


def test_a_pools_number_is_the_rate_of_a_clients_first_round(finished: Finished) -> None:
    overrides = [
        "federation.round_timeout_s=auto", "launch.kind=kubernetes", "kubernetes.image=lwfed",
        "kubernetes.pools=[{name: far, clients: [client-001], remote: true, gflop_per_s: 1.0e-6}, "
        "{name: near, resident: stage, gflop_per_s: 2.0e-6}]",
    ]  # fmt: skip
    spec = build_spec(VALUES, overrides=overrides)
    noted = RunRecord.of(finished.store.read_ref(f"runs/{finished.run.run_id}/run.json"))
    deadlines = Deadlines(noted, spec, finished.plans[0], store=finished.store)
    flops = work_flops(noted.predicted[0], kind="", examples=12, epochs=1, first=True)
    assert deadlines.of(("client-000",), []) == pytest.approx(OTHER_SLACK * flops / 2e3)
    assert deadlines.of(("client-000", "client-001"), []) == pytest.approx(OTHER_SLACK * flops / 1e3)
    seen = [record for record in _rounds(finished) if record.stage == 1]
    slow = [r.changed(clients={c: m.changed(wall_s=1e4) for c, m in r.clients.items()}) for r in seen]
    assert deadlines.of(("client-000",), slow) == pytest.approx(SLACK * 1e4), "what was seen counts, not the number"


@pytest.mark.parametrize("value", ["0", "-1", "fast", ".inf", ".nan"])
def test_a_rate_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(SpecError, match="gflop_per_s"):
        build_spec(VALUES, overrides=[f"kubernetes.pools=[{{name: near, gflop_per_s: {value}}}]"])


def test_a_number_is_every_rounds_deadline(finished: Finished) -> None:
    spec = spec_of(finished.run)
    assert Deadlines(finished.run, spec, finished.plans[0], store=finished.store).of((), []) == 3600


@pytest.mark.parametrize("kind", ["in_process", "subprocess"])
def test_only_clients_that_are_heard_can_do_without_a_number(kind: str) -> None:
    with pytest.raises(SpecError, match=r"round_timeout_s.*auto"):
        build_spec({**VALUES, "launch": {"kind": kind}}, overrides=["federation.round_timeout_s=auto"])


@pytest.mark.parametrize(("pool", "heard"), [("remote: true", True), ("resident: stage", True), ("gpus: 0", False)])
def test_pods_of_a_round_need_a_number(pool: str, heard: bool) -> None:
    overrides = [
        "federation.round_timeout_s=auto", "launch.kind=kubernetes", "kubernetes.image=lwfed",
        f"kubernetes.pools=[{{name: far, clients: [client-001], remote: true}}, {{name: near, {pool}}}]",
    ]  # fmt: skip
    if heard:
        assert build_spec(VALUES, overrides=overrides).federation.timeout_s is None
    else:
        with pytest.raises(SpecError, match=r"round_timeout_s.*auto"):
            build_spec(VALUES, overrides=overrides)


@pytest.mark.parametrize("value", ["automatic", "0", "-1", "1e300", "null"])
def test_nonsense_is_refused_by_name(value: str) -> None:
    with pytest.raises(SpecError, match="round_timeout_s"):
        build_spec(VALUES, overrides=[f"federation.round_timeout_s={value}"])


def _rounds(finished: Finished) -> list[Any]:
    from lwfed.run.runs import rounds_of

    return [record for key in finished.keys for record in rounds_of(finished.store, key)]
