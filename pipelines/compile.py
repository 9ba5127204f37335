"""Compiles an experiment's pipeline to a file: the same bytes for the same experiment, and a warning if it is large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwfed.formats import bytes_text
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store.opening import open_store
from lwfed.types.canonical import digest_of
from lwfed.types.errors import SpecError
from pipelines.stages import Work
from pipelines.tasks import Task, task_names

OBJECT_LIMIT = 3 << 19
"""Largest Workflow object in bytes that etcd accepts. Argo compresses one above 1 MiB, except in a run's retry."""
COPIES = 23
"""Upper bound of the escaped copies of a task's inputs and interface in the object at the run's end: 20 in a real one
of two stages; 14 to 21 were counted for compiled pipelines of one to six stages and specs of up to 26 kB."""
TASK_BYTES = 2_500
"""Bytes of a task's interface and pod, without its spec."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A pipeline on disk.

    Attributes:
        path: The file.
        spec: The experiment as the cluster runs it.
        digest: Digest of the file's contents without comments.
        tasks: Its tasks by name.
        file_bytes: The file's size.
        object_bytes: Upper bound of the Workflow object's size.
    """

    path: Path
    spec: RunSpec
    digest: str
    tasks: Mapping[str, Task]
    file_bytes: int
    object_bytes: int

    @property
    def titles(self) -> list[str]:
        """Titles of its stages."""
        return [task.title for task in self.tasks.values() if task.stage is not None]

    @property
    def pods(self) -> int:
        """Number of the pipeline's pods: two per task, and the drivers of the whole and of the exit handler's group."""
        return 2 * len(self.tasks) + 2


def compile_pipeline(work: Work, path: Path, *, cache: bool = True) -> Compiled:
    """Writes the pipeline of an experiment to a file; a spec that is too long for a parameter goes to the store.

    Args:
        work: The work to train.
        path: The file.
        cache: Whether Kubeflow Pipelines may take tasks' results from its cache.

    Returns:
        The compiled pipeline.

    Raises:
        SpecError: The spec cannot run on a cluster, or the stages do not fit it.
        UnreachableError: The spec cannot be written to the store.
    """
    import yaml
    from kfp import compiler

    from pipelines.pipeline import experiment_pipeline
    from pipelines.spec_text import spec_text

    spec = for_cluster(work.spec)
    pipeline = experiment_pipeline(replace(work, spec=spec), cache=cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    given = spec_text(spec)
    if given.startswith("sha256:"):
        spec_text(spec, store=open_store(spec.store.uri))
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    tasks = task_names(documents[0])
    return Compiled(
        path=path,
        spec=spec,
        digest=digest_of(documents),
        tasks=tasks,
        file_bytes=path.stat().st_size,
        object_bytes=COPIES * len(tasks) * (TASK_BYTES + len(given)),
    )


def for_cluster(spec: RunSpec) -> RunSpec:
    """Returns the spec for a cluster, whose clients run in pods unless it names another launcher.

    Raises:
        SpecError: The spec has no image, or a store that pods cannot share.
    """
    if not spec.kubernetes.image:
        raise SpecError("the pipeline's pods have no image", remedy="set kubernetes.image, best with a digest")
    if "://" not in spec.store.uri or spec.store.uri.startswith("file:"):
        raise SpecError(f"pods cannot share the folder {spec.store.uri}", remedy="set store.uri to s3://BUCKET/PREFIX")
    if "kind" in spec.launch.model_fields_set:
        return spec
    values: dict[str, Any] = to_values(spec)
    values["launch"]["kind"] = "kubernetes"
    return build_spec(values)


def size_warning(compiled: Compiled) -> str | None:
    """Returns a warning if a run's Workflow object may exceed etcd's limit, else None."""
    if compiled.object_bytes <= OBJECT_LIMIT:
        return None
    return (
        f"{len(compiled.titles)} stages repeat a long spec: the Workflow object may grow to "
        f"{bytes_text(compiled.object_bytes)}, and etcd accepts {bytes_text(OBJECT_LIMIT)}. Argo compresses it while "
        "it runs, but lwfed retry may then fail -> shorten `kubernetes` in the spec, or train fewer stages at a time "
        "(--stages)"
    )
