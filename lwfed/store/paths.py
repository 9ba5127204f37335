"""The layout of a store: every key that lwfed writes."""

from __future__ import annotations

from collections.abc import Sequence

STAGES = "stages/"
"""The folder of all stages."""


def stage(key: str) -> str:
    """The folder of a stage."""
    return f"stages/{key}"


def stage_plan(key: str) -> str:
    """The plan of a stage."""
    return f"stages/{key}/plan.json"


def stage_checkpoint(key: str) -> str:
    """The stage's result; its commit marker."""
    return f"stages/{key}/checkpoint.json"


def stage_record(key: str) -> str:
    """The metrics and ledger of a stage."""
    return f"stages/{key}/record.json"


def rounds(key: str) -> str:
    """The folder of a stage's rounds."""
    return f"stages/{key}/rounds/"


def round_folder(key: str, server_round: int) -> str:
    """The folder of a round; round 0 is the stage's initial model."""
    return f"{rounds(key)}{server_round:03d}"


def round_task(key: str, server_round: int) -> str:
    """The cohort and input of a round."""
    return f"{round_folder(key, server_round)}/round.json"


def accepted(key: str, server_round: int) -> str:
    """The accepted updates of a round."""
    return f"{round_folder(key, server_round)}/accepted.json"


def round_metrics(key: str, server_round: int) -> str:
    """The centralised metrics of a round."""
    return f"{round_folder(key, server_round)}/metrics.json"


def round_checkpoint(key: str, server_round: int) -> str:
    """The round's result; its commit marker."""
    return f"{round_folder(key, server_round)}/checkpoint.json"


def round_record(key: str, server_round: int) -> str:
    """The complete record of a finished round."""
    return f"{round_folder(key, server_round)}/record.json"


def all_updates(key: str, server_round: int) -> str:
    """The folder of all updates of a round."""
    return f"{round_folder(key, server_round)}/updates/"


def updates(key: str, server_round: int, client: str) -> str:
    """The folder of a client's update; its credentials can be limited to it."""
    return f"{all_updates(key, server_round)}{client}"


def update(key: str, server_round: int, client: str) -> str:
    """The update's commit marker."""
    return f"{updates(key, server_round, client)}/update.json"


def client_evaluation(key: str, server_round: int, client: str) -> str:
    """A client's evaluation of a round's result on its held-out share."""
    return f"{updates(key, server_round, client)}/evaluation.json"


def head_weights(key: str, server_round: int, client: str) -> str:
    """The weights of a client's blended losses in a round, which the coordinator writes."""
    return f"{updates(key, server_round, client)}/weights.json"


def run(run_id: str) -> str:
    """The run: its spec and the keys of its stages."""
    return f"runs/{run_id}/run.json"


def initial(run_id: str) -> str:
    """The blocks that its stages start from, if they were drawn in advance."""
    return f"runs/{run_id}/initial.json"


def summary(run_id: str) -> str:
    """The run's outcome."""
    return f"runs/{run_id}/summary.json"


def events(run_id: str) -> str:
    """The run's log of records, one JSON object per line."""
    return f"runs/{run_id}/events.jsonl"


def report(run_id: str) -> str:
    """The run's report."""
    return f"runs/{run_id}/report.html"


def figure(run_id: str, name: str) -> str:
    """A figure of the run's report; an empty name returns their folder."""
    return f"runs/{run_id}/figures/{name}"


def checked_data(version: str, needs: Sequence[str], split: str) -> str:
    """The list of examples of a version of the data that cannot be read in some modalities, or do not fit a model."""
    return f"data/{version}/{split}-{'-'.join(needs)}.json"


def data_files(version: str) -> str:
    """The digests of the files of a version of the data."""
    return f"data/{version}/files.json"


def spec(digest: str) -> str:
    """A spec that is too long for a pipeline's parameter."""
    return f"specs/{digest}.json"


def job(name: str) -> str:
    """The tasks of a Kubernetes Job, one per pod."""
    return f"jobs/{name}.json"


def heartbeat(run_id: str) -> str:
    """The heartbeat of a run's coordinator."""
    return f"heartbeats/{run_id}.json"


def client_data(run_id: str, client: str) -> str:
    """A client's description of data that only it can see."""
    return f"runs/{run_id}/clients/{client}/data.json"


AGENT_RUNS = "agents/runs/"
"""The folder of what runs want of their agents."""


def wants(run_id: str) -> str:
    """What a run wants of its agents now; the coordinator writes it."""
    return f"{AGENT_RUNS}{run_id}.json"


def beats(run_id: str, agent: str = "") -> str:
    """What an agent last said of its work for a run, which only the agent writes; without a name, their folder."""
    return f"agents/beats/{run_id}/{agent}.json" if agent else f"agents/beats/{run_id}/"
