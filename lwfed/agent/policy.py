"""What an agent's owner allows: its data, its devices, and the runs that it takes part in. No task can widen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from lwfed.catalog import names
from lwfed.catalog.source import data_source
from lwfed.formats import bytes_text
from lwfed.run.tasks import Device, Place
from lwfed.spec.document import read_yaml
from lwfed.types.errors import PolicyError, SpecError
from lwfed.types.section import Section
from lwfed.types.sizes import parse_size


class Policy(Section):
    """The policy of an agent, as its owner writes it; by default it allows every run on built-in data alone."""

    data: dict[str, str] = Field({}, description="source of data -> its folder here; other sources are refused")
    cache: str | None = Field(
        None, description="folder for files that the next round needs, with a folder per run; null: none are kept"
    )
    shared: str | None = Field(None, description="folder for digests of files; null: the machine's cache folder")
    device: Device = Field("auto", description="the device it trains on; auto: a GPU if there is one")
    workers: int = Field(0, ge=0, description="threads that decode and augment ahead")
    memory: str | None = Field(None, description="most memory, such as 8GiB, that the plan may predict for a step")
    round_s: float | None = Field(None, gt=0, description="most seconds that it trains in a round")
    experiments: tuple[str, ...] = Field(("*",), min_length=1, description="names of the specs it takes part in")
    objectives: tuple[Literal["contrastive", "supervised"], ...] = Field(
        ("contrastive", "supervised"), min_length=1, description="objectives it takes part in"
    )
    min_cohort: int = Field(1, ge=1, description="fewest updates that a round must have to count: the run's quorum")

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_size(text)
        return text

    @field_validator("data")
    @classmethod
    def _are_sources(cls, data: dict[str, str]) -> dict[str, str]:
        for source in data:
            if source not in names("sources"):
                raise ValueError(f"there is no source `{source}`: name one of {', '.join(names('sources'))}")
        return data

    def place(self, source: str, *, run_id: str) -> Place:
        """Returns the settings of this machine for a run's work on a source of data; none of them comes from a task."""
        return Place(
            root=self.data.get(source),
            workers=self.workers,
            device=self.device,
            cache=None if self.cache is None else str(Path(self.cache).expanduser() / run_id),
            shared=self.shared or self.cache,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a policy needs to know of a task.

    Attributes:
        experiment: The name of the run's spec.
        source: Its source of data.
        objective: Its objective.
        quorum: Fewest updates of a round that counts; None: the task trains nothing.
        peak_bytes: The predicted memory of a step; None: unknown.
    """

    experiment: str
    source: str
    objective: str
    quorum: int | None = None
    peak_bytes: int | None = None


def refuse(policy: Policy, facts: Facts) -> None:
    """Raises PolicyError if a policy forbids a task, and says by which of its keys."""
    if not any(fnmatchcase(facts.experiment, pattern) for pattern in policy.experiments):
        raise _refusal("experiments", f"{', '.join(policy.experiments)} alone, and this is {facts.experiment}")
    if facts.objective not in policy.objectives:
        raise _refusal("objectives", f"{', '.join(policy.objectives)} alone, and this is {facts.objective}")
    if facts.source not in policy.data and not data_source(facts.source).built_in:
        raise _refusal("data", f"{', '.join(policy.data) or 'built-in data'} alone, and this needs {facts.source}")
    if facts.quorum is not None and facts.quorum < policy.min_cohort:
        raise _refusal("min_cohort", f"at least {policy.min_cohort} updates per round, and {facts.quorum} count here")
    limit = None if policy.memory is None else parse_size(policy.memory)
    if limit is not None and facts.peak_bytes is not None and facts.peak_bytes > limit:
        raise _refusal("memory", f"{policy.memory}, and a step is predicted to need {bytes_text(facts.peak_bytes)}")


def _refusal(key: str, why: str) -> PolicyError:
    return PolicyError(f"its policy's `{key}` allows {why}", remedy="ask its owner, or leave the client out")


def load_policy(path: Path) -> Policy:
    """Reads a policy from a YAML file. Raises SpecError."""
    try:
        values: Any = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:  # no file, no text, or no YAML
        raise SpecError(f"the policy {path} cannot be read: {error}", remedy="name a YAML file") from None
    if not isinstance(values, Mapping):
        raise SpecError(f"the policy {path} has no keys", remedy=f"known: {', '.join(Policy.fields())}")
    try:
        return Policy.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(
            f"`{'.'.join(map(str, item['loc']))}`: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        )
        raise SpecError(f"the policy {path} is wrong: {wrong}", remedy=f"known: {', '.join(Policy.fields())}") from None
