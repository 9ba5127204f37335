"""Groups of clients that are not like the others: they train fewer blocks, or those of other stages."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lwfed.spec.base import Section
from lwfed.types.clients import WAYS
from lwfed.types.sizes import parse_size

OTHERS = "others"
"""Name of the clients that are in no group."""


class GroupSpec(Section):
    """Clients that train fewer blocks than the others, or those of other stages."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40, description="its name in plans and reports")
    clients: tuple[str, ...] = Field(min_length=1, description=WAYS)
    strategy: Literal["layerwise", "window", "progressive"] | None = Field(
        None, description="the stages whose blocks they train; null: as the other clients"
    )
    max_blocks: int | None = Field(
        None, ge=0, description="most blocks per modality that they train, the last ones; 0: heads alone; null: all"
    )
    device_memory: str | None = Field(
        None, description="memory of their devices, such as 4GiB: they train as many blocks as the ledger says fit"
    )
    too_small: Literal["train_less", "leave_out"] = Field(
        "train_less", description="where not all blocks fit: they train fewer, or skip the stage"
    )

    @field_validator("device_memory")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_size(text)
        return text

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if self.name == OTHERS:
            raise ValueError(f"`federation.groups`: the clients in no group are called `{OTHERS}`: take another name")
        if self.too_small == "leave_out" and self.device_memory is None:
            raise ValueError(f"`federation.groups` {self.name}: `too_small: leave_out` needs `device_memory`")
        if self.strategy is None and self.max_blocks is None and self.device_memory is None:
            raise ValueError(
                f"`federation.groups` {self.name} trains what all do: give it max_blocks, device_memory or a strategy"
            )
        return self

    @property
    def trains_less(self) -> bool:
        """Whether its clients may train fewer units than others of the same stage."""
        may_be_limited = self.device_memory is not None and self.too_small == "train_less"
        return self.strategy is not None or self.max_blocks is not None or may_be_limited
