"""The space of a sweep: which keys of a spec vary, and over which values. Pure; knows no optimiser."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lwfed.types.errors import SpecError

Value = str | int | float
RANGE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(?P<log>:log)?")


@dataclass(frozen=True, slots=True)
class Choices:
    """A key with a list of values.

    Attributes:
        key: The spec's key.
        values: Values as `-o KEY=VALUE` takes them.
    """

    key: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that must fit the spec."""
        return self.values

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"


@dataclass(frozen=True, slots=True)
class Range:
    """A key with a range of numbers, both ends included.

    Attributes:
        key: The spec's key.
        low: The least value.
        high: The largest value.
        log: Whether values are drawn evenly in their logarithm.
    """

    key: str
    low: int | float
    high: int | float
    log: bool

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that must fit the spec."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.key}={self.low}..{self.high}{':log' if self.log else ''}"


Axis = Choices | Range


def parse_choices(text: str) -> Choices:
    """Reads `KEY=VALUE,VALUE`; a comma within brackets does not separate values.

    Raises:
        SpecError: There is no key, or a value is missing or stands twice.
    """
    key, values = _key(text, "--grid")
    found = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", values)]
    if not all(found) or len(set(found)) != len(found):
        raise SpecError(f"--grid {text}: a value is missing or stands twice", remedy=f"write --grid {key}=VALUE,VALUE")
    return Choices(key, tuple(found))


def parse_search(text: str) -> Axis:
    """Reads `KEY=LOW..HIGH`, `KEY=LOW..HIGH:log`, or a list as `parse_choices` does. Integers stay integers.

    Raises:
        SpecError: There is no key, an end is no number, or the range is empty.
    """
    key, values = _key(text, "--search")
    found = RANGE.fullmatch(values)
    if found is None:
        return parse_choices(text)
    try:
        low, high = (_number(found[name].strip()) for name in ("low", "high"))
    except ValueError:
        raise SpecError(
            f"--search {text}: {values} is no range of numbers", remedy=f"write --search {key}=LOW..HIGH[:log]"
        ) from None
    log = found["log"] is not None
    if not low < high or (log and low <= 0):
        raise SpecError(
            f"--search {text}: the range is empty" + (" or not positive" if log else ""),
            remedy="write the smaller end first" + (", above 0" if log else ""),
        )
    if isinstance(low, float) or isinstance(high, float):
        low, high = float(low), float(high)
    return Range(key, low, high, log)


def overrides_of(values: Mapping[str, Value]) -> list[str]:
    """Returns values as overrides of a spec."""
    return [f"{key}={value}" for key, value in values.items()]


def grid_of(axes: Sequence[Choices]) -> Iterator[dict[str, str]]:
    """Yields every combination of choices, the last key varying fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield {axis.key: value for axis, value in zip(axes, values, strict=True)}


def probes_of(axes: Sequence[Axis]) -> Iterator[dict[str, Value]]:
    """Yields combinations that a spec must accept: all of the choices, with each range at its ends."""
    for values in itertools.product(*(axis.ends for axis in axes)):
        yield {axis.key: value for axis, value in zip(axes, values, strict=True)}


def refuse_repeated(axes: Sequence[Axis]) -> None:
    """Raises SpecError if no key varies, one stands twice, or the seed varies."""
    keys = [axis.key for axis in axes]
    if "seed" in keys:
        raise SpecError("a sweep does not choose among seeds", remedy="name them by --seeds: each trial has all")
    if not keys:
        raise SpecError("nothing varies in this sweep", remedy="name a key with --grid or --search")
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(f"`{key}` stands twice in --grid and --search", remedy="name each key once")


def _key(text: str, option: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise SpecError(f"{option} {text}: write KEY=VALUES", remedy=f"for example {option} training.batch_size=16,32")
    return key.strip(), values.strip()


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
