"""The data section: the source of the examples, how clients share them, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lwfed.catalog import names
from lwfed.catalog.source import data_source
from lwfed.spec.base import Choice, Section
from lwfed.types.uris import S3, bucket_of, refuse_mistaken, scheme_of

CLIENT_MARK = "{client}"
"""Placeholder in `root` for a client's id, or `server`, so that each has its own folder."""
ROOTS = "; ".join(f"{name}: {root}" for name in names("sources") if (root := data_source(name).root))
"""Contents of each source's folder."""


class DataSpec(Section):
    """The data, and how to read them."""

    model_config = ConfigDict(extra="allow")  # for the sources' own keys; `_known_keys` refuses any other

    source: Annotated[str, Choice("sources")] = Field("shapes", description="shapes is built in and needs no download")
    root: str | None = Field(
        None,
        description=f"{ROOTS}; a table may lie in s3://bucket/prefix; in a local partition, {{client}} stands for each "
        "client's id, and for `server` for the test data",
    )
    workers: int = Field(
        2, ge=0, description="threads that decode and augment, at most one per CPU; 0: one, at most a batch ahead"
    )
    on_bad_example: Literal["fail", "skip"] = Field(
        "fail", description="fail: an unreadable image or sound stops the run; skip: it is left out and counted"
    )
    incomplete: Literal["use", "skip", "fail"] = Field(
        "use",
        description="examples that lack a modality of the model; use: for what they have; skip: they are left out and "
        "counted; fail: they stop the run",
    )
    augment: bool = Field(True, description="random resized crops of training images")
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="fraction of the training examples set apart for validation, always the same ones"
    )
    length_buckets: bool = Field(
        False,
        description="put captions of similar length into one batch, the longest first; less padding, other batches",
    )

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Returns all keys with their descriptions: the common ones, and those that sources add."""
        found = dict(cls.model_fields)
        for name in names("sources"):
            found |= data_source(name).settings.fields()
        return found

    @property
    def own(self) -> dict[str, Any]:
        """The values of the keys that the source in use adds."""
        return {key: getattr(self, key) for key in data_source(self.source).settings.fields()}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for name in names("sources"):
            settings = data_source(name).settings
            given = {key: values[key] for key in settings.fields() if key in values}
            if info.mode == "json":
                found |= dict(settings.model_validate_json(json.dumps(given), strict=True))
            else:
                found |= dict(settings.model_validate(given))
        unknown = [key for key in values if key not in cls.fields()]
        if unknown:
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": "extra_forbidden", "loc": (key,), "input": values[key]} for key in unknown]
            )
        return found

    @model_validator(mode="after")
    def _root_is_named(self) -> Self:
        root = self.root or ""
        refuse_mistaken(root, key="data.root")
        if data_source(self.source).in_buckets and root.startswith(S3):
            bucket_of(root.replace(CLIENT_MARK, "client"), key="data.root")
        elif scheme_of(root):
            which = ", ".join(name for name in names("sources") if data_source(name).in_buckets)
            hint = f"; s3://bucket/prefix is for {which}" if scheme_of(root) == "s3" else ""
            raise ValueError(f"`data.root` {root} is a URI: name a folder; write ./{root} if it is one{hint}")
        if not data_source(self.source).built_in and not self.root:
            raise ValueError(f"`data.root` must name the folder of the {self.source} data")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        values = handler.resolve_ref_schema(handler(schema))
        for name in names("sources"):
            added = handler(data_source(name).settings.__pydantic_core_schema__)
            values["properties"] |= handler.resolve_ref_schema(added)["properties"]
        return {**values, "additionalProperties": False}


class PartitionSpec(Section):
    """How training examples are split among clients."""

    kind: Literal["iid", "contiguous", "dirichlet", "by_group", "local"] = Field(
        "iid",
        description="contiguous: len // N examples each, in the data's order, and the remainder is unused; local: each "
        "client trains on all of its own data.root",
    )
    alpha: float | None = Field(
        None, gt=0, validation_alias=AliasChoices("alpha", "beta"), description="dirichlet: concentration"
    )
    pattern: str | None = Field(
        None, description="by_group: regular expression for the file stem, with a group named `group`"
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
