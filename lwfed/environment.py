"""The only place that reads or writes environment variables."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lwfed.types.errors import SpecError

QUIET: Mapping[str, str] = {
    # no telemetry
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",  # MLflow reads "true", the Hugging Face hub any of 1, true, yes, on
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # waiting threads sleep: with more threads than free CPUs, spinning makes everything take 20 times as long
    "OMP_WAIT_POLICY": "PASSIVE",
    # allocate gradients in huge pages: clearing small pages takes longer than AdamW's step
    "THP_MEM_ALLOC_ENABLE": "1",
    # deterministic sums on a GPU
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # no progress bars of libraries, and no warnings that users cannot act on
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    # short timeouts, for machines without a network
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_HUB_DOWNLOAD_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Variables that `quiet` sets unless the user has set them."""

_DIGITS = 10
"""Fewer digits than this have the numbers of CPUs, ranks and pods."""
_LONGEST_S = 1e9
"""Thirty years: longer waits are beyond the system's clocks."""
_ADOPTED = "MLFLOW_RUN_ID"
_CPUS = "LWFED_CPUS"
_GROUP = "LWFED_MLFLOW_GROUP"
_GPUS = "CUDA_VISIBLE_DEVICES"
_PARENT = "LWFED_MLFLOW_PARENT_RUN_ID"
_PIPELINE_RUN = "KFP_RUN_ID"
_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""What torchrun alone sets; other variables of ranks may be those of a notebook or a PyTorchJob."""
_MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_RANKS = re.compile(r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_\w+)\Z")


def quiet() -> None:
    """Switches off libraries' telemetry, noise and long waits; keeps the user's own settings.

    A user without a name or home gets those that libraries look for, and keys lose the line breaks of their files.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not _has_home():
        os.environ.setdefault("USER", str(os.getuid()))
        os.environ.setdefault("XDG_CACHE_HOME", str(_scratch()))
        os.environ.setdefault("MPLCONFIGDIR", str(_scratch() / "matplotlib"))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        os.environ[name] = os.environ[name].strip()


def lend_home() -> None:
    """Sets HOME to a temporary folder for a user without one, because MLflow looks for it on import.

    Until then `~` in a path is an error, and not a folder that the user did not mean.
    """
    if not _has_home():
        os.environ["HOME"] = str(_scratch())


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return False
    return True


def _scratch() -> Path:
    """Returns the folder for reproducible files of a user without a home; never one that another user has made."""
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"lwfed-{user}"
    with suppress(FileNotFoundError):
        if folder.lstat().st_uid != user:
            return folder.with_name(f"{folder.name}-{os.getpid()}")
    return folder


def mlflow_adopted_run_id() -> str | None:
    """The MLflow run that the platform opened for this process (`MLFLOW_RUN_ID`); not to be ended."""
    return _text(_ADOPTED)


def mlflow_parent_run_id() -> str | None:
    """The MLflow run of the whole experiment, made elsewhere (`LWFED_MLFLOW_PARENT_RUN_ID`)."""
    return _text(_PARENT)


def mlflow_group() -> str | None:
    """The sweep that this process's run is a trial of (`LWFED_MLFLOW_GROUP`); MLflow shows them below one run."""
    return _text(_GROUP)


def for_trial(sweep: str, *, cpus: int | None) -> dict[str, str]:
    """Returns variables for a sweep's run: its group in MLflow, and the CPUs that it may use at most."""
    return {_GROUP: sweep} | ({} if cpus is None else {_CPUS: str(cpus)})


def mlflow_uri() -> str | None:
    """The tracking store that the platform names (`MLFLOW_TRACKING_URI`)."""
    return _text("MLFLOW_TRACKING_URI")


def child_environment(**extra: str) -> dict[str, str]:
    """Returns the environment of a child process: this process's own with a home, and without what is not the child's.

    These are the adopted MLflow run and the ranks: a client's ranks are those that its own torchrun sets.
    """
    lend_home()
    inherited = {name: value for name, value in os.environ.items() if name != _ADOPTED and not _RANKS.match(name)}
    return {**inherited, **extra}


def import_path() -> dict[str, str]:
    """Returns the variable by which a child process imports what this process can (`PYTHONPATH`)."""
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def named_gpus() -> tuple[str, ...] | None:
    """The GPUs that this process may use, by number or UUID (`CUDA_VISIBLE_DEVICES`); None: all."""
    text = _text(_GPUS)
    return None if text is None else tuple(name.strip() for name in text.split(","))


def only_gpus(names: Sequence[str]) -> dict[str, str]:
    """Returns the variables that limit a child to these GPUs; no limit if none is named."""
    return {_GPUS: ",".join(names)} if names else {}


def cpu_limit() -> int | None:
    """The number of CPUs to use at most (`LWFED_CPUS`); None: all that the system allows."""
    return _number(_CPUS, least=1) if _text(_CPUS) else None


def only_cpus(count: int) -> dict[str, str]:
    """Returns the variables that limit a child to a number of CPUs."""
    return {_CPUS: str(count)}


def debug() -> bool:
    """Whether to show tracebacks and not just one-line errors (`LWFED_DEBUG`)."""
    return (_text("LWFED_DEBUG") or "0").lower() not in ("0", "false", "no", "off")


def cache_folder() -> Path:
    """The folder for reproducible files: `LWFED_CACHE`, else `lwfed` below `XDG_CACHE_HOME` or `~/.cache`.

    A user without a home has it among the temporary files.
    """
    own = _text("LWFED_CACHE")
    if own:
        return Path(own).expanduser()
    cache = _text("XDG_CACHE_HOME") or ("~/.cache" if _has_home() else str(_scratch()))
    return Path(cache).expanduser() / "lwfed"


def _text(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def rank() -> int:
    """The rank of this process among those of its client (`RANK`, set by torchrun), from 0."""
    return _number("RANK")


def num_ranks_here() -> int:
    """The number of ranks that torchrun started on this machine (`LOCAL_WORLD_SIZE`); 1 without torchrun."""
    return _number("LOCAL_WORLD_SIZE", least=1) if _text(_TORCHRUN) else 1


@contextmanager
def ranks(*, use_gpu: bool) -> Iterator[None]:
    """Joins the other processes of a client if torchrun started several (`WORLD_SIZE`); else does nothing.

    Raises:
        SpecError: There are several, but nothing says which one this is and where they meet.
    """
    count = _number("WORLD_SIZE", least=1)
    if count == 1:
        yield
        return
    if missing := [name for name in _MEETING if not _text(name)]:
        raise SpecError(f"WORLD_SIZE={count} is set without {missing[0]}", remedy="unset it, or start with torchrun")
    import torch
    import torch.distributed as dist

    device = None
    if use_gpu and torch.cuda.is_available():
        device = torch.device("cuda", _number("LOCAL_RANK"))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device is None else "nccl", device_id=device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def job_index() -> int:
    """The index of this pod in its Indexed Job (`JOB_COMPLETION_INDEX`), from 0."""
    return _number("JOB_COMPLETION_INDEX")


def run_id() -> str | None:
    """The run's id, if the environment sets it (`LWFED_RUN_ID`)."""
    return _text("LWFED_RUN_ID")


def kfp_run_id() -> str | None:
    """The pipeline run that this process is a task of (`KFP_RUN_ID`)."""
    return _text(_PIPELINE_RUN)


def resume_hint() -> str:
    """Returns how to resume a run: by a retry of its pipeline run, or by starting the same run again."""
    pipeline_run = kfp_run_id()
    how = f"lwfed retry {pipeline_run[:8]}" if pipeline_run else "start the run again with the same --run-id"
    return f"{how}: nothing committed is lost"


def pod_name() -> str | None:
    """The pod of this process, if the environment names it (`KFP_POD_NAME`, `POD_NAME`)."""
    return _text("KFP_POD_NAME") or _text("POD_NAME")


def own_name() -> str:
    """The name of this process to others: its pod, else its host."""
    return pod_name() or _text("HOSTNAME") or "this machine"


def for_pods(run_id: str) -> dict[str, str]:
    """Returns variables for a run's pods: the run, its pipeline run, and its MLflow run as a parent (not to adopt)."""
    known = {
        "LWFED_RUN_ID": run_id,
        _PIPELINE_RUN: kfp_run_id(),
        _PARENT: mlflow_parent_run_id() or mlflow_adopted_run_id(),
    }
    return {name: value for name, value in known.items() if value}


def kubeconfig() -> str | None:
    """The configuration file of the cluster, or several separated by colons (`KUBECONFIG`)."""
    return _text("KUBECONFIG")


def kfp_endpoint() -> str | None:
    """The URL of Kubeflow Pipelines (`KF_PIPELINES_ENDPOINT`), as its own client reads it."""
    return _text("KF_PIPELINES_ENDPOINT")


def kfp_ui() -> str | None:
    """The URL of its web pages, if different (`KF_PIPELINES_UI_ENDPOINT`)."""
    return _text("KF_PIPELINES_UI_ENDPOINT")


def kfp_token_file() -> str | None:
    """The file with this pod's token for Kubeflow Pipelines (`KF_PIPELINES_SA_TOKEN_PATH`)."""
    return _text("KF_PIPELINES_SA_TOKEN_PATH")


def named(name: str) -> str | None:
    """A variable that the user names, such as one with a token."""
    return _text(name)


def s3_patience_s() -> float:
    """Seconds of retries while an S3 server is down (`LWFED_S3_PATIENCE_S`)."""
    return _seconds("LWFED_S3_PATIENCE_S", default=120)


def read_patience_s() -> float:
    """Seconds that reading one example may take (`LWFED_READ_PATIENCE_S`).

    The default is 300: a hard-mounted network file system reports nothing while its server restarts or fails over,
    which takes minutes, and no healthy disk takes that long for one file.
    """
    return _seconds("LWFED_READ_PATIENCE_S", default=300)


def _number(name: str, *, least: int = 0) -> int:
    """Returns a variable's number, the least one by default. Raises SpecError if it is none."""
    text = _text(name) or str(least)
    if not (text.isdecimal() and len(text) < _DIGITS and int(text) >= least):
        raise SpecError(f"{name}={text[:100]} is not a number", remedy=f"set it to {least} or more, or unset it")
    return int(text)


def _seconds(name: str, *, default: int) -> float:
    text = _text(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_S:
        raise SpecError(
            f"{name}={text[:100]} is not a number of seconds",
            remedy=f"set it to a number from 0 to {_LONGEST_S:.0f}; {default} is the default",
        )
    return seconds


def s3_secret_folder() -> Path | None:
    """The folder of a mounted secret with an S3 server's keys, one per file (`LWFED_S3_SECRET_DIR`)."""
    folder = _text("LWFED_S3_SECRET_DIR")
    return None if folder is None else Path(folder).expanduser()


def s3_endpoint() -> str | None:
    """The URL of an S3 server other than AWS (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`)."""
    return _text("AWS_ENDPOINT_URL_S3") or _text("AWS_ENDPOINT_URL")


def aws_variables() -> tuple[tuple[str, str], ...]:
    """The variables that botocore reads (`AWS_*`); a change of them needs a new client."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def s3_region() -> str | None:
    """The region to sign requests for (`AWS_REGION`, `AWS_DEFAULT_REGION`)."""
    return _text("AWS_REGION") or _text("AWS_DEFAULT_REGION")


def minio_admin() -> tuple[str | None, str | None]:
    """Name and password of MinIO's administrator (`MINIO_ROOT_USER`, `MINIO_ROOT_PASSWORD`)."""
    return _text("MINIO_ROOT_USER"), _text("MINIO_ROOT_PASSWORD")


def ca_bundle() -> str | None:
    """The certificate file of the authority that signed a server's certificate (`AWS_CA_BUNDLE`)."""
    return _text("AWS_CA_BUNDLE")
