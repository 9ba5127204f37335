"""All reading and writing of environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lwfed.types.errors import SpecError

QUIET: Mapping[str, str] = {
    # no telemetry
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",  # MLflow reads "true", the Hugging Face hub any of 1, true, yes, on
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # large pages for new gradients: clearing small pages takes longer than AdamW's step
    "THP_MEM_ALLOC_ENABLE": "1",
    # deterministic sums on a GPU
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # no output over our own progress display, and no warnings that the user cannot act on
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    # short waits without a network
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DOWNLOAD_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Variables that `quiet` sets unless the user has."""

_ADOPTED = "MLFLOW_RUN_ID"
_GPUS = "CUDA_VISIBLE_DEVICES"
_PARENT = "LWFED_MLFLOW_PARENT_RUN_ID"
_PIPELINE_RUN = "KFP_RUN_ID"


def quiet() -> None:
    """Switches off libraries' telemetry, noise and long waits, without overriding the user's variables."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def mlflow_adopted_run_id() -> str | None:
    """Returns the MLflow run that the platform opened for this process (`MLFLOW_RUN_ID`); lwfed never ends it."""
    return _text(_ADOPTED)


def mlflow_parent_run_id() -> str | None:
    """Returns the MLflow run of the whole experiment, created elsewhere (`LWFED_MLFLOW_PARENT_RUN_ID`)."""
    return _text(_PARENT)


def mlflow_uri() -> str | None:
    """Returns the tracking store that the platform names (`MLFLOW_TRACKING_URI`)."""
    return _text("MLFLOW_TRACKING_URI")


def child_environment(**extra: str) -> dict[str, str]:
    """Returns the environment for a child process: this one's, without the adopted MLflow run, plus `extra`."""
    inherited = {name: value for name, value in os.environ.items() if name != _ADOPTED}
    return {**inherited, **extra}


def become(variables: Mapping[str, str]) -> None:
    """Sets variables of this process, for a fork, which cannot get them from `child_environment`."""
    os.environ.update(variables)


def named_gpus() -> tuple[str, ...] | None:
    """Returns the GPUs that this process may use, by number or UUID (`CUDA_VISIBLE_DEVICES`); None for all."""
    text = _text(_GPUS)
    return None if text is None else tuple(name.strip() for name in text.split(","))


def only_gpus(names: Sequence[str]) -> dict[str, str]:
    """Returns the variables that restrict a child to these GPUs; empty, for no restriction, if none is named."""
    return {_GPUS: ",".join(names)} if names else {}


@contextmanager
def leaving_cuda_alone() -> Iterator[None]:
    """Makes torch look for GPUs with NVML while the body runs, because CUDA, once initialised, cannot be forked.

    Does not override the user's `PYTORCH_NVML_BASED_CUDA_CHECK`.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def debug() -> bool:
    """Returns whether `LWFED_DEBUG` requests tracebacks instead of one-line errors."""
    return (_text("LWFED_DEBUG") or "0").lower() not in ("0", "false", "no", "off")


def cache_folder() -> Path:
    """Returns the cache folder: `LWFED_CACHE`, else `lwfed` in `XDG_CACHE_HOME` or `~/.cache`."""
    own = _text("LWFED_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(_text("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lwfed"


def _text(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def rank() -> int:
    """Returns the number of this process among those of one client (`RANK`, set by torchrun), from 0."""
    return int(_text("RANK") or 0)


@contextmanager
def ranks(*, use_gpu: bool) -> Iterator[None]:
    """Joins the client's other processes if torchrun started several (`WORLD_SIZE`); otherwise does nothing."""
    if int(_text("WORLD_SIZE") or 1) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    device = None
    if use_gpu and torch.cuda.is_available():
        device = torch.device("cuda", int(_text("LOCAL_RANK") or 0))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device is None else "nccl", device_id=device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def job_index() -> int:
    """Returns the number of this pod in its Indexed Job (`JOB_COMPLETION_INDEX`), from 0."""
    return int(_text("JOB_COMPLETION_INDEX") or 0)


def run_id() -> str | None:
    """Returns the run's id, if this process was given one (`LWFED_RUN_ID`)."""
    return _text("LWFED_RUN_ID")


def kfp_run_id() -> str | None:
    """Returns the pipeline run that this process is a task of (`KFP_RUN_ID`)."""
    return _text(_PIPELINE_RUN)


def go_on() -> str:
    """Returns a remedy that says how to resume an interrupted run: by a retry of its pipeline run, or by its id."""
    pipeline_run = kfp_run_id()
    how = f"lwfed retry {pipeline_run[:8]}" if pipeline_run else "start the run again with the same --run-id"
    return f"{how}: nothing committed is lost"


def pod_name() -> str | None:
    """Returns the pod that this process runs in, if known (`KFP_POD_NAME`, `POD_NAME`)."""
    return _text("KFP_POD_NAME") or _text("POD_NAME")


def own_name() -> str:
    """Returns a name of this process for others: its pod, else its host."""
    return pod_name() or _text("HOSTNAME") or "this machine"


def for_pods(run_id: str) -> dict[str, str]:
    """Returns variables for the pods of a run: the run, its pipeline run, and its MLflow run, only as a parent."""
    known = {
        "LWFED_RUN_ID": run_id,
        _PIPELINE_RUN: kfp_run_id(),
        _PARENT: mlflow_parent_run_id() or mlflow_adopted_run_id(),
    }
    return {name: value for name, value in known.items() if value}


def kubeconfig() -> str | None:
    """Returns the file, or files separated by colons, that describe how to reach a cluster (`KUBECONFIG`)."""
    return _text("KUBECONFIG")


def kfp_endpoint() -> str | None:
    """Returns the address of Kubeflow Pipelines (`KF_PIPELINES_ENDPOINT`), like its own client."""
    return _text("KF_PIPELINES_ENDPOINT")


def kfp_ui() -> str | None:
    """Returns the address of Kubeflow Pipelines' web pages, if it differs (`KF_PIPELINES_UI_ENDPOINT`)."""
    return _text("KF_PIPELINES_UI_ENDPOINT")


def kfp_token_file() -> str | None:
    """Returns the file with a pod's own token for Kubeflow Pipelines (`KF_PIPELINES_SA_TOKEN_PATH`)."""
    return _text("KF_PIPELINES_SA_TOKEN_PATH")


def named(name: str) -> str | None:
    """Returns a variable that the user names, such as one with a token."""
    return _text(name)


def s3_patience_s() -> float:
    """Returns the seconds for which requests to an unreachable S3 server are retried (`LWFED_S3_PATIENCE_S`)."""
    text = _text("LWFED_S3_PATIENCE_S") or "120"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SpecError(
            f"LWFED_S3_PATIENCE_S={text} is not a number of seconds", remedy="set it to 0 or more; 120 is the default"
        )
    return seconds


def s3_secret_folder() -> Path | None:
    """Returns the folder of a mounted secret with an S3 server's keys, one per file (`LWFED_S3_SECRET_DIR`)."""
    folder = _text("LWFED_S3_SECRET_DIR")
    return None if folder is None else Path(folder).expanduser()


def s3_endpoint() -> str | None:
    """Returns the address of an S3 server other than AWS's (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`)."""
    return _text("AWS_ENDPOINT_URL_S3") or _text("AWS_ENDPOINT_URL")


def aws_variables() -> tuple[tuple[str, str], ...]:
    """Returns all variables that botocore reads (`AWS_*`), so that a client can be replaced when they change."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def s3_region() -> str | None:
    """Returns the region to sign requests for (`AWS_REGION`, `AWS_DEFAULT_REGION`)."""
    return _text("AWS_REGION") or _text("AWS_DEFAULT_REGION")


def minio_admin() -> tuple[str | None, str | None]:
    """Returns the name and password of MinIO's administrator (`MINIO_ROOT_USER`, `MINIO_ROOT_PASSWORD`)."""
    return _text("MINIO_ROOT_USER"), _text("MINIO_ROOT_PASSWORD")


def ca_bundle() -> str | None:
    """Returns the file with the authority that signed a server's certificate (`AWS_CA_BUNDLE`)."""
    return _text("AWS_CA_BUNDLE")
