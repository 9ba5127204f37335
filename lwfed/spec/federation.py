"""The federation: clients, rounds, quorum, server optimiser, exchange, and where clients run."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator

from lwfed import catalog
from lwfed.catalog.launcher import launcher_kind
from lwfed.spec.base import Choice, Section
from lwfed.spec.data import PartitionSpec
from lwfed.spec.groups import GroupSpec
from lwfed.types.clients import WAYS, client_ids, expand_clients
from lwfed.types.encoded import is_lossless
from lwfed.types.errors import SpecError
from lwfed.types.uris import S3, folder_of, refuse_mistaken, scheme_of

if TYPE_CHECKING:
    AggregatorSpec = Section
else:
    AggregatorSpec = catalog.settings_of("aggregators")

NUM_CLIENTS = 10
"""Number of clients by default."""
MLFLOW_SCHEMES = (
    "http",
    "https",
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "file",
    "databricks",
    "databricks-uc",
    "uc",
)
"""Schemes of MLflow's own tracking stores; plugins of MLflow add others."""
MLFLOW_NAME_CHARS = {"experiment": 500, "register_as": 256}
"""Most characters of MLflow's names."""


def store_folder(uri: str) -> str:
    """Returns the folder of a store that is not in S3. Raises SpecError if the URI names none."""
    if scheme_of(uri) == "s3":
        raise SpecError(f"`store.uri` {uri} names no bucket", remedy=f"write it as {S3}bucket/prefix")
    return folder_of(uri, key="store.uri", others=f", or {S3}bucket/prefix")


class ServerSpec(Section):
    """The server's optimiser (Reddi et al. 2021; Hsu et al. 2019)."""

    kind: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = Field(
        "fedavg", description="how the server applies the mean of the updates"
    )
    eta: float | None = Field(
        None, gt=0, description="server learning rate; null: 1 for fedavg and fedavgm, 1e-2 for fedadam and fedyogi"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="fedavgm")
    beta_1: float = Field(0.9, ge=0, lt=1, description="fedadam, fedyogi: decay of the first moment")
    beta_2: float = Field(0.99, ge=0, lt=1, description="fedadam, fedyogi: decay of the second moment")
    tau: float = Field(1e-3, gt=0, description="fedadam, fedyogi: adaptivity")

    @property
    def is_identity(self) -> bool:
        """Whether the new model is simply the mean of the updates."""
        return self.kind == "fedavg" and self.rate == 1

    @property
    def rate(self) -> float:
        """The effective server learning rate."""
        if self.eta is not None:
            return self.eta
        return 1.0 if self.kind in ("fedavg", "fedavgm") else 1e-2


class FederationSpec(Section):
    """The clients that take part, and the server's part in a round."""

    num_clients: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="clients that share the training examples; null: 10, or in a by_group partition one per group",
    )
    partition: PartitionSpec = PartitionSpec()
    eligible_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the first int(fraction x num_clients) clients take part, such as those with enough memory; the "
        "data of the others are unused",
    )
    fraction_fit: float = Field(
        1.0,
        gt=0,
        le=1,
        validation_alias=AliasChoices("fraction_fit", "fraction_train"),
        description="fraction of clients per round",
    )
    min_fit_clients: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("min_fit_clients", "min_train_nodes"),
        description="the quorum; if there is only one client, one is enough",
    )
    min_available_clients: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("min_available_clients", "min_available_nodes"),
        description="fewest clients that must have data before a round begins",
    )
    sampling: Literal["uniform", "by_size", "round_robin"] = Field(
        "uniform",
        description="how a round's clients are drawn: all alike; in proportion to their examples, with the weights "
        "that this needs; or in turn",
    )
    oversample: float = Field(
        1.0,
        ge=1,
        le=10,
        description="1.2: asks 12 clients for 10 updates, and goes on as soon as it has 10",
    )
    round_timeout_s: Annotated[float, Field(gt=0, le=1e9)] | Literal["auto"] = Field(
        3600,
        description="deadline of a round, seconds; auto, if all clients are agents: from the plan's FLOPs and the "
        "rates of earlier rounds, and none while a client's rate is unknown",
    )
    aggregators: tuple[AggregatorSpec, ...] = Field(
        (), description="wrappers that each update passes, in this order, before the weighted mean"
    )
    server: ServerSpec = ServerSpec()
    groups: tuple[GroupSpec, ...] = Field((), description="clients that are not like the others")
    require: tuple[str, ...] = Field((), description=f"clients that each round asks and cannot do without: {WAYS}")
    unit_quorum: int = Field(1, ge=1, description="fewest clients that must send a unit of the model in a round")
    modality_quorum: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="modality -> fewest clients that must send its units, instead of unit_quorum"
    )
    unsent: Literal["fail", "keep"] = Field(
        "fail", description="a unit that fewer clients sent: the round fails, or the unit stays as it was"
    )

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Self:
        if self.num_clients is None and self.partition.kind != "by_group":
            object.__setattr__(self, "num_clients", NUM_CLIENTS)
        if self.num_clients is None:
            return self
        if not self.eligible:
            raise ValueError(f"`eligible_fraction` {self.eligible_fraction} of {self.num_clients} client(s) is none")
        part = "" if self.eligible == self.num_clients else " that take part"
        for key in ("min_fit_clients", "min_available_clients"):
            if getattr(self, key) > max(self.eligible, 2):  # 2 is the default
                raise ValueError(f"`{key}` is {getattr(self, key)}, more than the {self.eligible} clients{part}")
        self.members()
        if self.required and self.sampling == "by_size":
            raise ValueError("`require` and `sampling: by_size` exclude one another: such a sample would be biased")
        quorums = self.unit_quorum > 1 or bool(self.modality_quorum)
        if self.oversample > 1 and (quorums or any(group.trains_less for group in self.groups)):
            raise ValueError(
                "`oversample` and `groups`, `unit_quorum` or `modality_quorum` exclude one another: the first updates "
                "may lack a unit that those of the clients it stops would have"
            )
        if self.sampling == "by_size" and any(group.trains_less for group in self.groups):
            raise ValueError(
                "`sampling: by_size` and `groups` exclude one another: its weights make a mean unbiased that all "
                "clients take part in, and not the mean of a unit that some of them train"
            )
        if self.required and self.oversample > 1:
            raise ValueError("`require` and `oversample` exclude one another: a round would not wait for the required")
        return self

    @property
    def timeout_s(self) -> float | None:
        """The deadline of every round in seconds; None: each has its own."""
        return None if self.round_timeout_s == "auto" else self.round_timeout_s

    @property
    def required(self) -> tuple[str, ...]:
        """Ids of the clients without which a round fails. Raises SpecError if one is unknown."""
        return expand_clients(self.require, known=self.eligible_ids, where="federation.require", of=self.clients)

    def members(self) -> dict[str, tuple[str, ...]]:
        """Returns the clients of each group, by its name, in the spec's order.

        Raises:
            SpecError: A client is unknown or is in two groups, or two groups have one name.
        """
        found = dict[str, tuple[str, ...]]()
        group_of = dict[str, str]()
        for group in self.groups:
            where = f"federation.groups.{group.name}.clients"
            clients = expand_clients(group.clients, known=self.eligible_ids, where=where, of=self.clients)
            if group.name in found:
                raise SpecError(f"two of `federation.groups` are called {group.name}", remedy="rename one of them")
            for client in clients:
                if client in group_of:
                    raise SpecError(
                        f"{client} is in the groups {group_of[client]} and {group.name}", remedy="put it into one"
                    )
                group_of[client] = group.name
            found[group.name] = clients
        return found

    @property
    def clients(self) -> int:
        """Number of clients. Raises SpecError if it is not set and the groups of the data are not counted yet."""
        if self.num_clients is None:
            raise SpecError(
                "`federation.num_clients` is null, and only the data tell the number of groups",
                remedy="set federation.num_clients, or data.root to the data",
            )
        return self.num_clients

    @property
    def eligible(self) -> int:
        """Number of clients that take part: the first of all. Raises SpecError as `clients` does."""
        return int(self.clients * self.eligible_fraction)

    @property
    def eligible_ids(self) -> tuple[str, ...]:
        """Ids of the clients that take part: the first int(`eligible_fraction` x N). Raises SpecError as `clients`."""
        return client_ids(self.clients)[: self.eligible]

    @property
    def wrappers(self) -> tuple[str, ...]:
        """Names of the aggregators that wrap the weighted mean."""
        return tuple(aggregator.kind for aggregator in self.aggregators)  # type: ignore[attr-defined]  # they all have it

    @property
    def quorum(self) -> int:
        """Fewest updates that a round needs: `min_fit_clients`, or all that take part if there are fewer."""
        return min(self.min_fit_clients, self.eligible)


class ExchangeSpec(Section):
    """How tensors are sent."""

    upload: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="from a client to the server; bf16 and int8 send changes, and keep the rounding error"
    )
    download: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="from the server to a client; bf16 and int8 send a round's change, the same to all clients"
    )

    @property
    def lossy(self) -> bool:
        """Whether tensors are rounded in either direction."""
        return not (is_lossless(self.upload) and is_lossless(self.download))


class LaunchSpec(Section):
    """Where a round's clients run. Does not affect digests, except for `devices` above one."""

    kind: Annotated[str, Choice("launchers")] = Field(
        "in_process", description="subprocess: clients in processes on this machine; kubernetes: a pod per client"
    )
    parallel: int = Field(1, ge=1, description="clients at a time, spread over this machine's GPUs (subprocess)")
    devices: int = Field(1, ge=1, description="devices per client; above 1 with torchrun (subprocess, kubernetes)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    retries: int = Field(1, ge=0, description="retries for a client that died (subprocess)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not launcher_kind(self.kind).parallel and (self.devices > 1 or self.parallel > 1):
            raise ValueError("`launch.devices` and `launch.parallel` above 1 need `launch.kind: subprocess`")
        return self


class StoreSpec(Section):
    """Where checkpoints are stored."""

    uri: str = Field("./lwfed-runs", description="a folder, or s3://bucket/prefix")
    keep_rounds: int = Field(
        2, ge=0, description="latest rounds of a running stage whose weights are kept; 0: all. Stage results always are"
    )

    updates: Literal["keep", "memory"] = Field(
        "keep",
        description="keep: a client's update is written before it counts, and a killed run goes on from it; memory: it "
        "stays in this process, and a killed run trains the round in work again (in_process)",
    )

    @field_validator("uri")
    @classmethod
    def _is_folder_or_bucket(cls, uri: str) -> str:
        refuse_mistaken(uri, key="store.uri")
        if not uri.startswith(S3):
            store_folder(uri)
        return uri


class TrackingSpec(Section):
    """Where metrics go, besides the JSON lines in the store."""

    uri: str | None = Field("sqlite:///mlflow.db", description="an MLflow tracking store; null switches MLflow off")
    ui: str | None = Field(None, description="MLflow's address for people, if it differs; null: uri")
    experiment: str = Field("lwfed", description="the MLflow experiment of the runs")
    register_as: str | None = Field(
        None, description="name of the registered model; null: the experiment's and the run's names, with - for / and :"
    )

    @field_validator("experiment", "register_as")
    @classmethod
    def _is_a_name_in_mlflow(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None:
            return None
        most = MLFLOW_NAME_CHARS[str(info.field_name)]
        if not name.strip() or len(name) > most or "\0" in name:
            raise ValueError(f"`tracking.{info.field_name}`: write 1 to {most} characters")
        if info.field_name == "register_as" and (re.search(r"[/:]", name) or name in (".", "..")):
            raise ValueError(f"`tracking.register_as` {name!r}: MLflow's models have no `/` or `:` in their names")
        return name

    @field_validator("uri")
    @classmethod
    def _is_known_to_mlflow(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        scheme = scheme_of(uri)
        kind = scheme.partition("+")[0]
        plugins = {entry.name for entry in metadata.entry_points(group="mlflow.tracking_store")}
        if not uri.strip() or (scheme and kind not in MLFLOW_SCHEMES and scheme not in plugins):
            raise ValueError(
                f"`tracking.uri` {uri!r} is no tracking store of MLflow: write sqlite:///FILE, http://HOST:PORT, "
                "a folder, or null for none"
            )
        if kind in ("http", "https", "sqlite") and not uri.lower().startswith(
            f"{scheme}://" + "/" * (kind == "sqlite")
        ):
            wanted = "sqlite:///FILE" if kind == "sqlite" else f"{scheme}://HOST:PORT"
            raise ValueError(f"`tracking.uri` {uri!r}: write it as {wanted}")
        return uri
