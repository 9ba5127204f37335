"""What a run wants of its agents: names of calls and of their content, and the tasks that agents make of it."""

from __future__ import annotations

from lwfed.launch.step_process import task_of
from lwfed.run.agents import SERVER, Wants, wants_of
from lwfed.run.tasks import ClientTask, Place, RoundTask

CLIENTS = ("client-000", "client-001")


def tasks(server_round: int = 1, clients: tuple[str, ...] = CLIENTS, measure: str = "") -> dict[str, list[ClientTask]]:
    return {
        client: [
            ClientTask(
                store="s", run_id="r", stage_key="k", server_round=server_round, client=client,
                measure=client == measure, place=Place(root="/the/coordinators"),
            )
        ]
        for client in clients
    }  # fmt: skip


def test_equal_work_has_one_content_and_each_request_is_another_call() -> None:
    one = wants_of("train-client", tasks(measure="client-001"), run_id="r")
    again = wants_of("train-client", tasks(measure="client-001"), run_id="r")
    rest = wants_of("train-client", tasks(clients=CLIENTS[1:]), run_id="r")
    assert one.content == again.content == rest.content
    assert len({one.call, again.call, rest.call}) == 3
    others = [
        wants_of("train-client", tasks(server_round=2), run_id="r"),
        wants_of("evaluate-client", tasks(), run_id="r"),
        wants_of("train-client", tasks(), run_id="other"),
    ]
    assert len({one.content, *(other.content for other in others)}) == 4
    assert not Wants(run_id="r").content, "no work has no content"


def test_agents_make_the_tasks_that_were_asked_for_but_for_the_place() -> None:
    given = tasks(measure="client-001")
    wanted = Wants.of(wants_of("train-client", given, run_id="r").to_values())
    for client, (task,) in given.items():
        (values,) = wanted.tasks_of(client).values()
        assert task_of("train-client", values) == task.model_copy(update={"place": Place()})
    assert wanted.tasks_of("client-007") == {}


def test_the_servers_work_has_no_client() -> None:
    task = RoundTask(store="s", run_id="r", stage_key="k", server_round=3)
    wanted = wants_of("aggregate-round", {"pool-0": [task]}, run_id="r")
    assert wanted.work == {"pool-0": [SERVER]}
    assert task_of("aggregate-round", wanted.tasks_of("pool-0")[SERVER]) == task
