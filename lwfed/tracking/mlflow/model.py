"""Registers a model made of code, a URI and a digest; it fetches its weights when it is loaded."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from lwfed import __version__
from lwfed.tracking.jsonlines import Record
from lwfed.tracking.mlflow.entries import log
from lwfed.tracking.mlflow.runs import RUN_ID

LOADER = "lwfed.export.serve:load_predictor"
"""The function that turns (uri, digest) into a predictor; the model names it, and imports it when loaded."""
SCRIPT = Path(__file__).with_name("model_script.py")


def signature_of(kind: str, *, modalities: tuple[str, ...]) -> ModelSignature:
    """Returns the input and output columns of a model.

    Args:
        kind: `contrastive` (embeds; a row may have any of the modalities) or `supervised` (classifies).
        modalities: Its inputs.

    Returns:
        The signature: images, sounds and sensors' signals are paths or base64, signals also JSON, texts are texts;
        `batch_size` is a parameter.
    """
    classifies = kind == "supervised"
    inputs = [ColSpec(DataType.string, modality, required=classifies) for modality in modalities]
    if classifies:
        outputs = [ColSpec(DataType.string, "label"), ColSpec(Array(DataType.double), "probabilities")]
    else:
        outputs = [ColSpec(Array(DataType.float), f"{modality}_embedding", required=False) for modality in modalities]
    params = ParamSchema([ParamSpec("batch_size", DataType.integer, 32)])
    return ModelSignature(Schema(inputs), Schema(outputs), params)


def register_model(client: MlflowClient, model: Record, *, name: str, run: Run, last_round: int) -> str:
    """Logs a model to a run and registers it as a new version, unless the run has registered it already.

    Args:
        client: The client of the tracking store, which is the registry too.
        model: `uri` of the store, `digest` of the checkpoint, `kind`, `modalities`, `classes`, and optionally `loader`.
        name: The registered model's name.
        run: The MLflow run of the experiment that made it.
        last_round: The last global round.

    Returns:
        The registered model, as `name/version`.
    """
    if run.data.tags.get("lwfed.model_digest") == model["digest"]:
        return str(run.data.tags["lwfed.model"])
    run_id, digest = run.info.run_id, str(model["digest"])
    tags = {RUN_ID: run.data.tags[RUN_ID], "lwfed.digest": digest, "lwfed.uri": str(model["uri"])}
    modalities = tuple(model["modalities"])
    try:
        client.create_registered_model(name, description="Trained by lwfed; fetches its weights when it is loaded.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", name),  # its rules are stricter than the registry's
        source_run_id=run_id,
        tags=tags,
        params={"kind": str(model["kind"]), "modalities": ", ".join(modalities)},
        model_type=str(model["kind"]),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="lwfed-model-") as scratch:
            folder = Path(scratch) / "model"
            _save(model, folder, logged=logged, run_id=run_id)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=last_round)])
        # the files' own URI, since a sqlite registry looks up models:/<id> in the global tracking store
        version = client.create_model_version(
            name, source=logged.artifact_location, run_id=run_id, tags=tags, model_id=logged.model_id
        )
    except Exception:
        client.delete_logged_model(logged.model_id)  # delivery retries with a new one
        raise
    registered = f"{name}/{version.version}"
    marks = {"lwfed.model_id": logged.model_id, "lwfed.model": registered, "lwfed.model_digest": digest}
    log(client, run_id, tags=marks)
    return registered


def _save(model: Record, folder: Path, *, logged: LoggedModel, run_id: str) -> None:
    """Writes the model's files: its code, and a reference to its weights."""
    uri, digest = str(model["uri"]), str(model["digest"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for an input example, which would load the weights
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(SCRIPT),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                run_id=run_id,
            ),
            signature=signature_of(str(model["kind"]), modalities=tuple(model["modalities"])),
            pip_requirements=[f"lwfed=={__version__}"],
            model_config={"uri": uri, "digest": digest, "loader": str(model.get("loader", LOADER))},
            metadata={"lwfed": {"uri": uri, "digest": digest, "classes": list(model.get("classes") or ())}},
        )
