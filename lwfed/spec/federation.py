"""The federation: clients, rounds, quorum, the server's optimiser, what is exchanged and where clients run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from lwfed import catalog
from lwfed.catalog.launcher import launcher_kind
from lwfed.spec.base import Choice, Section
from lwfed.spec.data import PartitionSpec
from lwfed.types.encoded import is_lossless

if TYPE_CHECKING:
    AggregatorSpec = Section
else:
    AggregatorSpec = catalog.settings_of("aggregators")


class ServerSpec(Section):
    """The server's optimiser (Reddi et al. 2021; Hsu et al. 2019)."""

    kind: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = Field(
        "fedavg", description="what is done with the mean of the updates"
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
        """Whether the mean of the updates is the new model."""
        return self.kind == "fedavg" and self.rate == 1

    @property
    def rate(self) -> float:
        """The server learning rate in force."""
        if self.eta is not None:
            return self.eta
        return 1.0 if self.kind in ("fedavg", "fedavgm") else 1e-2


class FederationSpec(Section):
    """Who takes part."""

    num_clients: int = Field(10, ge=1, description="clients that share the training examples")
    partition: PartitionSpec = PartitionSpec()
    fraction_fit: float = Field(
        1.0, gt=0, le=1, validation_alias=AliasChoices("fraction_fit", "fraction_train"), description="share of clients"
    )
    min_fit_clients: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("min_fit_clients", "min_train_nodes"),
        description="the quorum; a single client is enough where there is no second",
    )
    min_available_clients: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("min_available_clients", "min_available_nodes"),
        description="fewest clients that must have data before a round begins",
    )
    round_timeout_s: float = Field(3600, gt=0, description="deadline of a round, seconds")
    aggregators: tuple[AggregatorSpec, ...] = Field(
        (), description="what each update passes, in this order, before the weighted mean is taken"
    )
    server: ServerSpec = ServerSpec()

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Self:
        for key in ("min_fit_clients", "min_available_clients"):
            if getattr(self, key) > max(self.num_clients, 2):  # 2 is the default
                raise ValueError(f"`{key}` is {getattr(self, key)}, more than the {self.num_clients} clients")
        return self

    @property
    def wrappers(self) -> tuple[str, ...]:
        """Names of the aggregators that wrap the weighted mean."""
        return tuple(aggregator.kind for aggregator in self.aggregators)  # type: ignore[attr-defined]  # they all have it

    @property
    def quorum(self) -> int:
        """Fewest updates a round needs: `min_fit_clients`, or all clients where there are fewer."""
        return min(self.min_fit_clients, self.num_clients)


class ExchangeSpec(Section):
    """How tensors travel."""

    upload: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="from a client to the server; bf16 and int8 are changes, with what was rounded off kept"
    )
    download: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="from the server to a client; bf16 and int8 are a round's change, which all decode alike"
    )

    @property
    def lossy(self) -> bool:
        """Whether anything is rounded off on the way, in either direction."""
        return not (is_lossless(self.upload) and is_lossless(self.download))


class LaunchSpec(Section):
    """Where a round's clients run. Not part of what a digest depends on, but for `devices` above one."""

    kind: Annotated[str, Choice("launchers")] = Field(
        "in_process", description="subprocess: clients in processes of this machine; kubernetes: a pod per client"
    )
    parallel: int = Field(1, ge=1, description="clients at a time, spread over this machine's GPUs (subprocess)")
    devices: int = Field(1, ge=1, description="devices a client; above 1 through torchrun (subprocess, kubernetes)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    retries: int = Field(1, ge=0, description="tries again for a client that died (subprocess)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not launcher_kind(self.kind).parallel and (self.devices > 1 or self.parallel > 1):
            raise ValueError("`launch.devices` and `launch.parallel` above 1 need `launch.kind: subprocess`")
        return self


class StoreSpec(Section):
    """Where checkpoints live."""

    uri: str = Field("./lwfed-runs", description="a folder, or s3://bucket/prefix")
    keep_rounds: int = Field(
        2, ge=0, description="rounds of a stage in work whose weights are kept; 0: all. Stage results always are"
    )


class TrackingSpec(Section):
    """Where metrics go besides the JSON lines of the store."""

    uri: str | None = Field("sqlite:///mlflow.db", description="an MLflow tracking store; null switches MLflow off")
    ui: str | None = Field(None, description="where people open MLflow, if it has another address for them; null: uri")
    experiment: str = Field("lwfed", description="the MLflow experiment that runs are put in")
    register_as: str | None = Field(None, description="registered model's name; null: the experiment's and the run's")
