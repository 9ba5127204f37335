"""Answers that were seen on no server: made from the definitions in Kubeflow Pipelines' sources.

Each says where in the sources it comes from: tag 2.17.0 where nothing else is said. A test that rests on one carries
the marker `unseen`. What is made shows as recorded ones do, and so does what follows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.components.made import add_version, schedule, start
from tests.components.recorded import TASK, Answer, NotRecordedError, Played, as_json

if TYPE_CHECKING:
    from tests.components.kfp_server import Ask, State

V2 = "/apis/v2beta1"


def instead(state: State, ask: Ask) -> Answer | None:
    """Returns an answer that goes before what is recorded: of other installations than the recorded one."""
    if state.token and ask.token != f"Bearer {state.token}":
        # backend/src/apiserver/auth/auth.go: IdentityHeaderMissingError; the status is that of a proxy in front
        return refused(401, "Request header error: there is no user identity header.", code=16)
    if state.multi_user and (found := _in_namespaces(state, ask)) is not None:
        return found
    if state.is_ui and ask.path.startswith("/apis/v1alpha1/"):
        # frontend/server/app.ts: it passes on v1beta1 and v2beta1; other paths are those of its own files
        return Answer(b"Not Found", 404, "text/html; charset=utf-8")
    if state.hides_tasks and ask.path.startswith("/apis/v1beta1/"):
        # a guess: of a version that has left it out
        return as_json({"code": 5, "message": "Not Found", "details": []}, status=404)
    return None


def answer(state: State, ask: Ask) -> Answer | None:
    """Returns an answer to what the recorded server was not asked; None where the definitions know none either."""
    if ask.words == ("POST", f"{V2}/experiments"):
        return _experiment(state, json.loads(ask.body))
    if ask.words == ("POST", f"{V2}/pipelines/upload"):
        return _upload(state, ask)
    if ask.words == ("POST", f"{V2}/pipelines/upload_version"):
        return _exists("Failed to create a pipeline version")  # any other is recorded
    if ask.words in (("POST", f"{V2}/runs"), ("POST", f"{V2}/recurringruns")):
        return _make(state, ask)
    if state.is_ui and ask.words == ("GET", "/k8s/pod/logs"):
        return _pod_log(state, ask)
    if state.is_ui and ask.words == ("GET", "/"):
        # frontend/server/app.ts: index.html
        return Answer(b"<html><body>Kubeflow Pipelines</body></html>", kind="text/html; charset=utf-8")
    return None


def refused(status: int, message: str, *, code: int) -> Answer:
    """Returns an error as the gateway writes it: `google.rpc.Status`, whose shape is recorded."""
    return as_json({"code": code, "message": message, "details": []}, status=status)


def _in_namespaces(state: State, ask: Ask) -> Answer | None:
    """Returns what a multi-user installation answers.

    backend/src/apiserver/server/healthz_server.go, experiment_server.go (canAccessExperiment), run_server.go
    (canAccessRun), resource/resource_manager.go (IsAuthorized); the user's name and the reason stand for any.
    """
    if ask.words == ("GET", f"{V2}/healthz"):
        return as_json({"multi_user": True, "pipeline_store": "database"})
    body = json.loads(ask.body) if ask.words == ("POST", f"{V2}/experiments") else {}
    if ask.path not in (f"{V2}/experiments", f"{V2}/runs", f"{V2}/pipelines", f"{V2}/pipelines/upload"):
        return None
    if ask.words == ("POST", f"{V2}/runs"):  # its namespace is that of its experiment
        return None
    namespace = body.get("namespace") or ask.query.get("namespace")
    if not namespace:
        return refused(
            400, "Invalid input error: An experiment cannot have an empty namespace in multi-user mode", code=3
        )
    if namespace not in state.namespaces:
        return refused(403, f"User 'me' is not authorized with reason: no access to namespace {namespace}", code=7)
    return None


def _experiment(state: State, made: dict[str, Any]) -> Answer:
    """backend/api/v2beta1/experiment.proto: CreateExperiment returns Experiment."""
    made |= {"experiment_id": str(uuid.uuid4()), "storage_state": "AVAILABLE", "created_at": _now()}
    state.experiments.append(made)
    return as_json(made)


def _upload(state: State, ask: Ask) -> Answer:
    """backend/api/v2beta1/swagger/pipeline.upload.swagger.json: UploadPipeline returns v2beta1Pipeline.

    backend/src/apiserver/server/pipeline_upload_server.go has the 409 of a name that is there, a plain JSON object.
    """
    name = ask.query["name"]
    if any(item["display_name"] == name for item in state.pipelines):
        return _exists("Failed to create a pipeline and a pipeline version")
    made = {"pipeline_id": str(uuid.uuid4()), "display_name": name, "name": name, "created_at": _now()}
    state.pipelines.append(made)
    add_version(state, str(made["pipeline_id"]), name, ask)
    return as_json(made)


def _exists(message: str) -> Answer:
    return as_json({"error_message": message, "error_details": message}, status=409)


def _make(state: State, ask: Ask) -> Answer:
    """Makes a run or a schedule that wants more than the recorded ones: a place for its outputs, an account, a plugin.

    backend/api/v2beta1/run.proto, recurring_run.proto: the answer says again what was asked for.
    """
    wanted = json.loads(ask.body)
    if (wrong := _wrong_parameters(state, wanted)) is not None:
        return wrong
    return start(state, wanted) if ask.path.endswith("/runs") else schedule(state, wanted)


def _pod_log(state: State, ask: Ask) -> Answer:
    """The log of a pod while it is there, as the server of the web pages has it.

    frontend/server/app.ts: `/k8s/pod/logs`; frontend/server/handlers/pod-logs.ts: by the pod's name, as plain text; 422
    without a namespace in multi-user mode.
    """
    if state.multi_user and not ask.query.get("podnamespace"):
        return Answer(b"podnamespace argument is required", 422, "text/html; charset=utf-8")
    run = state.runs.get(ask.query.get("runid", ""))
    for name, node in run.nodes.items() if run else ():
        if run is not None and ask.query["podname"] == pod_name(run, name) and node["phase"] != "Pending":
            task = TASK.search(node["name"])
            log = run.written.get(task[1]) if task else None
            if log is None and node["phase"] == "Running":
                raise NotRecordedError(f"what {name} has written so far")
            return Answer((run.log(name) or "" if log is None else log).encode(), kind="text/plain; charset=utf-8")
    words = "Could not get main container logs: Error: Unable to retrieve workflow status"
    return Answer(words.encode(), 500, "text/html; charset=utf-8")


def pod_name(run: Played, node: str) -> str:
    """Returns the name of a node's pod: Argo's pod-name-format v2, which the recorded workflows name."""
    return f"{run.workflow}-{run.nodes[node]['templateName']}-{node.rpartition('-')[2]}"


def _wrong_parameters(state: State, made: Mapping[str, Any]) -> Answer | None:
    """Returns the refusal of parameters that the pipeline does not have.

    backend/src/apiserver/template/v2_template.go has the sentence.
    """
    wanted = made["pipeline_version_reference"]["pipeline_version_id"]
    version = next(item for item in state.versions if item["pipeline_version_id"] == wanted)
    known = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    unknown = sorted(set((made.get("runtime_config") or {}).get("parameters") or {}) - set(known))
    if not unknown:
        return None
    return refused(400, f"parameter(s) provided are not required by pipeline: {', '.join(unknown)}", code=3)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
