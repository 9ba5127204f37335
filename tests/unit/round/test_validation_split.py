"""A validation split: whole examples set apart before the partition, always the same, and seen by evaluation alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.partition import split_validation
from lwfed.data.protocol import Example
from lwfed.data.sources.shapes import NUM_MEANINGS, Shapes, open_data
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, SpecError
from tests.tiny import run_tiny, tiny_spec

LABELLED = [Example(id=f"example-{n:03d}", label=n % 3 if n < 90 else 3) for n in range(100)]
PLAIN = [Example(id=f"example-{n:03d}", label=None) for n in range(50)]


def shapes(size: ShapesSize) -> Shapes:
    return open_data(DataSpec(shapes=size))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_each_class_gives_its_fraction_whatever_the_order(fraction: float) -> None:
    train, validation = split_validation(LABELLED, fraction=fraction)
    assert sorted([*train, *validation], key=lambda e: e.id) == LABELLED
    assert Counter(e.label for e in validation) == {
        **dict.fromkeys(range(3), round(fraction * 30)), 3: max(1, round(fraction * 10))
    }  # fmt: skip
    back = split_validation(LABELLED[::-1], fraction=fraction)
    assert {e.id for e in back[1]} == {e.id for e in validation}
    assert [e.id for e in validation] == sorted(e.id for e in validation), "the old order stays"


def test_no_fraction_sets_nothing_apart_and_examples_without_labels_are_one_class() -> None:
    assert split_validation(LABELLED, fraction=0.0) == (LABELLED, [])
    train, validation = split_validation(PLAIN, fraction=0.2)
    assert (len(train), len(validation)) == (40, 10)
    one = [Example(id="a", label=0), Example(id="b", label=1)]
    assert split_validation(one, fraction=0.9) == (one, []), "a class of one is trained on"


def test_validation_scenes_of_their_own_leave_the_others_as_they_are() -> None:
    plain, more = (shapes(ShapesSize(train=40, test=8, validation=count)) for count in (0, 12))
    assert plain.train == more.train and plain.test == more.test and len(more.validation) == 12
    assert plain.version() != more.version() and plain.examples("validation") == ()
    words = [{c for e in part for c in e.captions} for part in (more.train, more.test, more.validation)]
    assert not words[2] & (words[0] | words[1])
    with pytest.raises(DataError, match="validation"):
        shapes(ShapesSize(train=NUM_MEANINGS, test=8, validation=1))


def test_a_run_evaluates_on_validation_examples_that_no_client_has(tmp_path: Path) -> None:
    plain = run_tiny(tmp_path / "plain")
    split = run_tiny(tmp_path / "split", "data.validation_fraction=0.25")
    own = run_tiny(tmp_path / "own", "data.shapes.validation=8")
    assert plain.run.data.num_validation == 0 and not any("validation" in name for name in plain.summary["metrics"])
    assert own.summary["digest"] == plain.summary["digest"], "scenes of their own change no training"
    assert split.summary["digest"] != plain.summary["digest"]
    for ended in (split, own):
        assert ended.run.data.num_validation > 0
        tested = {name.removeprefix("test/") for name in ended.summary["metrics"] if name.startswith("test/")}
        assert {f"validation/{name}" for name in tested} <= ended.summary["metrics"].keys()
    total = plain.run.data.num_train
    assert split.run.data.num_train + split.run.data.num_validation == total == sum(plain.run.data.clients.values())
    assert sum(split.run.data.clients.values()) == split.run.data.num_train
    assert split.run.data.left_out == own.run.data.left_out == {}


@pytest.mark.parametrize("fraction", ["1", "-0.1", "yes"])
def test_fractions_outside_of_0_to_1_are_refused(tmp_path: Path, fraction: str) -> None:
    with pytest.raises(SpecError, match=r"data\.validation_fraction"):
        tiny_spec(tmp_path, f"data.validation_fraction={fraction}")


def test_a_fraction_and_scenes_of_their_own_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="validation"):
        run_tiny(tmp_path, "data.validation_fraction=0.1", "data.shapes.validation=8")
