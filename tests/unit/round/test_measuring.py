"""Laws of measuring: one client of each kind, and of each pool of machines, measures once per stage."""

from __future__ import annotations

from pathlib import Path

from lwfed.launch.in_process import InProcess
from lwfed.plan.stages import plan_stages
from lwfed.round.measuring import measured_kinds, measuring_clients
from lwfed.run.tasks import ClientTask
from lwfed.types.round_records import ClientRecord
from tests.tiny import DEPTHS, measured_of, run_tiny, tiny_spec

WEAK = "federation.groups=[{name: weak, clients: [client-002..client-003], max_blocks: 1}]"
COHORT = [f"client-{n:03d}" for n in range(4)]


def test_the_largest_client_of_each_kind_measures_unless_an_earlier_round_did() -> None:
    plan = plan_stages(tiny_spec("runs", "federation.num_clients=4", WEAK), depths=DEPTHS)[0]
    sizes = {"client-000": 5, "client-001": 9, "client-002": 4, "client-003": 4}

    def here(client: str) -> str:
        return "here"

    chosen = measuring_clients(plan, COHORT, sizes=sizes, pool=here, done=())
    assert chosen == {"client-001", "client-002"}, "of two that are as large the first"
    assert measuring_clients(plan, COHORT, sizes=sizes, pool=here, done={"weak on here"}) == {"client-001"}
    assert measuring_clients(plan, COHORT[:1], sizes={}, pool=here, done=()) == {"client-000"}
    apart = measuring_clients(plan, COHORT, sizes=sizes, pool=lambda client: client[-1], done=())
    assert apart == set(COHORT), "each on machines of its own"
    step = {"forward": 1.0, "backward": 2.0, "batch": 2}
    measured = ClientRecord.of({"num_examples": 4, "steps": 1, "loss": 1.0, "step_flops": step})
    plain = measured.changed(step_flops=None)
    assert measured_kinds(plan, {"client-003": measured, "client-000": plain}, pool=here) == {"weak on here"}


def test_what_failed_to_measure_is_measured_in_the_next_round(tmp_path: Path) -> None:
    class Lossy(InProcess):
        def _train(self, task: ClientTask, **kwargs: object):  # type: ignore[no-untyped-def]  # as the launcher's
            if task.server_round == 1 and task.measure:
                raise RuntimeError("its data are gone")
            return super()._train(task, **kwargs)  # type: ignore[arg-type]

    overrides = ("federation.num_clients=3", "data.shapes.train=31", "stages.rounds=[3,0]")
    done = run_tiny(tmp_path, *overrides, launcher=Lossy)
    first, second, third = done.reported("round")
    assert len(first["clients"]) == 2 and not any("step_flops" in one for one in first["clients"].values())
    assert len(measured_of(second)) == 1 and not any("step_flops" in one for one in third["clients"].values())
