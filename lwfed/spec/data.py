"""The data: where examples come from, how clients share them, and how they are read."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AliasChoices, Field, model_validator

from lwfed.spec.base import Section

CLIENT_MARK = "{client}"
"""In `root`: replaced by a client's id, or by `server`, so that each has a folder of its own."""


class ShapesSize(Section):
    """How many built-in scenes to draw, and how large."""

    train: int = Field(960, ge=4, description="scenes to train on")
    test: int = Field(200, ge=4, description="scenes to test on")
    image_size: int = Field(32, ge=16, description="pixels a side")
    seed: int = Field(0, description="seed of the scenes, apart from the run's seed")


class DataSpec(Section):
    """Which data, and how to read them."""

    source: Literal["shapes", "coco", "advance"] = Field("shapes", description="shapes is built in: no download")
    root: str | None = Field(
        None,
        description="coco: train2017/ val2017/ annotations/; advance: [train/ test/] vision/ sound/; a local "
        "partition puts {client} into it, which is each client's id, and `server` for the test data",
    )
    shapes: ShapesSize = ShapesSize()
    workers: int = Field(2, ge=0, description="processes that decode and augment; 0: in the training process")
    on_bad_example: Literal["fail", "skip"] = Field(
        "fail", description="an unreadable image or sound stops the run, or is skipped and counted"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="advance without train/ test/ folders: share held out, by seed"
    )
    augment: bool = Field(True, description="random resized crops of training images")
    length_buckets: bool = Field(
        False, description="captions of similar length share a batch, the longest first: less padding, other companions"
    )

    @model_validator(mode="after")
    def _root_is_named(self) -> Self:
        if self.source != "shapes" and not self.root:
            raise ValueError(f"`data.root` must name the folder of the {self.source} data")
        return self


class PartitionSpec(Section):
    """How training examples are shared among clients."""

    kind: Literal["iid", "dirichlet", "by_group", "local"] = Field(
        "iid", description="local: each client trains on all of its own data.root"
    )
    alpha: float | None = Field(
        None, gt=0, validation_alias=AliasChoices("alpha", "beta"), description="dirichlet: concentration"
    )
    pattern: str | None = Field(
        None, description="by_group: regular expression on the file stem with a group named `group`"
    )
    field: str | None = Field(None, description="by_group: a field of the data, such as label or site")
    min_size: int = Field(2, ge=1, description="fewest examples a client may have")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "dirichlet" and self.alpha is None:
            raise ValueError("a dirichlet partition needs `alpha`, for example 0.5")
        if self.kind != "dirichlet" and self.alpha is not None:
            raise ValueError(f"`alpha` is for a dirichlet partition, not {self.kind}")
        if self.kind == "by_group" and (self.pattern is None) == (self.field is None):
            raise ValueError("a by_group partition needs either `pattern` or `field`")
        if self.kind != "by_group" and (self.pattern or self.field):
            raise ValueError(f"`pattern` and `field` are for a by_group partition, not {self.kind}")
        if self.pattern is not None and "(?P<group>" not in self.pattern:
            raise ValueError("`pattern` needs a group named `group`, for example '^(?P<group>[a-z]+)_'")
        return self
