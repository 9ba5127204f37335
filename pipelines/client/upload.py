"""Creates what a run needs on the server, unless it exists: its experiment, the pipeline, and the pipeline's version.

A version's name contains the digest of the compiled pipeline, so that equal submissions share a version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines import DESCRIPTION, PIPELINE
from pipelines.client.connection import Kfp, silence
from pipelines.client.errors import RefusedError
from pipelines.client.runs import by_name, own_pipeline
from pipelines.compile import Compiled

DIGITS = 12
"""Digits of the digest in a version's name."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an uploaded pipeline."""

    pipeline_id: str
    version_id: str
    name: str
    reused: bool


def ensure_experiment(kfp: Kfp, name: str) -> str:
    """Returns the id of an experiment; creates it if necessary.

    Raises:
        RefusedError: The experiment is archived.
        LwfedError: The server refuses or does not answer.
    """
    import kfp_server_api as api

    about, client = f"the experiment {name}", kfp.client
    listed = kfp.call(client.list_experiments, filter=by_name(name), namespace=kfp.namespace, about=about)
    if listed.experiments:
        found = listed.experiments[0]
    else:
        wanted = api.V2beta1Experiment(display_name=name, namespace=kfp.namespace)
        create = client._experiment_api.experiment_service_create_experiment
        found = kfp.call(create, experiment=wanted, about=about)
    if found.storage_state == "ARCHIVED":
        raise RefusedError(f"{about} is archived", remedy="restore it in the UI, or choose another --experiment")
    return str(found.experiment_id)


def ensure_version(kfp: Kfp, compiled: Compiled) -> Version:
    """Returns the version of a compiled pipeline; uploads it if necessary.

    Raises:
        LwfedError: The server refuses or does not answer.
    """
    client, path = kfp.client, str(compiled.path)
    name = f"{compiled.spec.name}-{compiled.digest[:DIGITS]}"

    def find_version() -> str | None:
        found = kfp.call(
            client.list_pipeline_versions, pipeline_id, filter=by_name(name), about="versions of the pipeline"
        )
        return next((str(item.pipeline_version_id) for item in found.pipeline_versions or ()), None)

    def upload_pipeline() -> str:
        about = f"the pipeline {PIPELINE}"
        made = kfp.call(client.upload_pipeline, path, PIPELINE, DESCRIPTION, namespace=kfp.namespace, about=about)
        return str(made.pipeline_id)

    def upload_version() -> str:
        about = f"the pipeline version {name}"
        made = kfp.call(client.upload_pipeline_version, path, name, pipeline_id=pipeline_id, about=about)
        return str(made.pipeline_version_id)

    pipeline_id, _ = _ensure(lambda: own_pipeline(kfp), upload_pipeline)
    version_id, reused = _ensure(find_version, upload_version)
    return Version(pipeline_id, version_id, name, reused)


def _ensure(find: Callable[[], str | None], make: Callable[[], str]) -> tuple[str, bool]:
    """Finds an id, or makes it; returns it and whether it existed, also if somebody else was faster."""
    found = find()
    if found is None:
        try:
            with silence():
                return make(), False
        except RefusedError as error:
            found = find() if error.status == 409 or "already exist" in error.problem else None
            if found is None:
                raise
    return found, True
