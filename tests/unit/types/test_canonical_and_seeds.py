"""Laws of canonical JSON, digests and seeds."""

from __future__ import annotations

import json

import pytest

from lwfed.types.canonical import by_line, canonical, digest_of, readable
from lwfed.types.seeds import as_int, derive


def test_equal_values_have_one_encoding() -> None:
    assert canonical({"b": [1, 2.5], "a": "é"}) == canonical({"a": "é", "b": (1, 2.5)}) == (
        '{"a":"é","b":[1,2.5]}'.encode()
    )  # fmt: skip
    assert json.loads(readable({"b": 1, "a": [2]})) == {"a": [2], "b": 1}
    assert readable({"a": 1}).endswith(b"\n")


def test_lines_for_people_hold_the_same_value_and_are_few() -> None:
    value = {"b": {"y": [1, {"z": None}], "x": {"deep": {"er": "é"}}}, "a": {}, "c": {"1": {2: 3}}}
    text = by_line(value).decode()
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.splitlines() == [
        "{", ' "a": {},', ' "b": {', '  "x": {"deep": {"er": "é"}},', '  "y": [1, {"z": null}]', " },",
        ' "c": {', '  "1": {"2": 3}', " }", "}",
    ]  # fmt: skip
    assert by_line([{"a": 1}]) == b'[{"a": 1}]\n' and by_line({2: 1}) == b'{"2": 1}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, float("-inf")]])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    for encode in (canonical, readable, by_line):
        with pytest.raises(ValueError):
            encode(value)


def test_digests_tell_values_apart() -> None:
    values = [None, 0, 0.0, "0", [], {}, [0], {"a": 0}, {"a": "0"}, {"b": 0}, [[0]], False, ""]
    digests = {digest_of(value) for value in values}
    assert len(digests) == len(values)
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


def test_seeds_depend_on_every_name_and_on_how_names_are_cut() -> None:
    seeds = [
        derive("0"), derive("0", "a"), derive("0", "b"), derive("0", "a", "b"), derive("0", "ab"),
        derive("0", "b", "a"),
        derive("0", 1), derive("0", "1"), derive("1"), derive("1", "a"), derive(derive("0", "a"), "b"),
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert derive(7, "x") == derive("7", "x"), "the spec's integer and its text are one seed"
    assert derive("0", "init") == derive("0", "init")


def test_a_seed_is_the_same_on_every_machine() -> None:
    """Golden: another derivation would change every result."""
    assert derive("0", "init", "image.stem") == "9fe25a294f0cc558f47dd4f0e5b46dc745341eec43556ed5055c6025099c30e5"


def test_integers_from_seeds_fit_any_generator() -> None:
    numbers = [as_int(derive("0", n)) for n in range(500)]
    assert all(0 <= number < 2**63 for number in numbers)
    assert len(set(numbers)) == 500
    for bit in range(63):
        assert 150 < sum(number >> bit & 1 for number in numbers) < 350, "no bit is stuck"
    assert as_int("f" * 64) == 2**63 - 1 and as_int("0" * 64) == 0
