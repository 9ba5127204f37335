"""Length buckets: the same examples an epoch, in batches of the same sizes, with less padding."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.batches import Batch, train_batches
from lwfed.data.buckets import WINDOW, by_length
from lwfed.data.inputs import InputSettings
from lwfed.data.sources.shapes import open_data
from lwfed.spec.data import DataSpec

SOURCE = open_data(DataSpec(shapes=ShapesSize(train=66, test=4, image_size=16)))
EPOCH = 17  # batches of 4; the last has 2


def epoch(
    *, length_buckets: bool, modalities: tuple[str, ...] = ("image", "text"), view: int = 0, used: int | None = None
) -> list[Batch]:
    stream = train_batches(
        SOURCE, examples=SOURCE.train, settings=InputSettings(modalities=modalities, image_size=16, max_tokens=200),
        batch_size=4, seed="5", first_view=view, augment=False, workers=0, length_buckets=length_buckets,
        num_batches=used,
    )  # fmt: skip
    return list(islice(stream, EPOCH))


def test_an_epoch_holds_the_same_captions_with_less_padding() -> None:
    plain, sorted_ = epoch(length_buckets=False), epoch(length_buckets=True)
    real, padded = [], []
    for batches in (plain, sorted_):
        real.append(sum(int(batch.inputs["text"]["mask"].sum()) for batch in batches))
        padded.append(sum(batch.inputs["text"]["mask"].numel() for batch in batches))
        assert sorted(name for batch in batches for name in batch.ids) == sorted(e.id for e in SOURCE.train)
    assert sorted(len(batch.ids) for batch in plain) == sorted(len(batch.ids) for batch in sorted_)
    assert real[0] == real[1], "each example has the caption it would have had"
    assert padded[1] - real[1] < 0.5 * (padded[0] - real[0])


def test_the_order_is_seeded_and_does_not_follow_the_length() -> None:
    one, two, other = (epoch(length_buckets=True, view=view) for view in (0, 0, 1))
    assert [b.ids for b in one] == [b.ids for b in two] != [b.ids for b in other]
    lengths = [batch.inputs["text"]["ids"].shape[1] for batch in one]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


@pytest.mark.parametrize("used", [None, EPOCH - 1, 5, 1])
def test_what_a_client_trains_on_first_is_the_longest(used: int | None) -> None:
    """Of the batches that it trains on, which stay the same: a short round is not drawn to long captions."""
    found = epoch(length_buckets=True, used=used)
    assert len(found) == (used or EPOCH) and len(found[0].ids) == 4
    lengths = [batch.inputs["text"]["ids"].shape[1] for batch in found if len(batch.ids) == 4]
    assert lengths[0] == max(lengths) and (len(found) < EPOCH or lengths[0] > min(lengths))
    after = train_batches(
        SOURCE, examples=SOURCE.train, settings=InputSettings(modalities=("text",), max_tokens=200), batch_size=4,
        seed="5", first_view=-1, augment=False, workers=0, length_buckets=True, num_batches=EPOCH + len(found),
    )  # fmt: skip
    later = list(after)[EPOCH:]
    assert sorted(b.ids for b in later) == sorted(b.ids for b in found), "a later epoch moves none"
    assert len(found) == 1 or [b.ids for b in later] != [b.ids for b in found]


def test_the_short_batch_has_the_shortest() -> None:
    assert by_length([[0, 1], [2, 3], [4]], length=lambda n: n, rng=np.random.default_rng(0)).count([0]) == 1


def test_without_text_nothing_changes() -> None:
    ids = [[b.ids for b in epoch(length_buckets=on, modalities=("image",))] for on in (False, True)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("num_batches", [1, WINDOW, WINDOW + 3])
def test_examples_stay_within_their_window(num_batches: int) -> None:
    batches = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(num_batches)]
    lengths = np.random.default_rng(0).permutation(3 * num_batches)
    found = by_length(batches, length=lambda n: int(lengths[n]), rng=np.random.default_rng(1))
    assert sorted(n for batch in found for n in batch) == list(range(3 * num_batches))
    for batch in found:
        assert len({n // 3 // WINDOW for n in batch}) == 1
        inside = sorted(lengths[n] for n in batch)
        window = batch[0] // 3 // WINDOW
        rest = [lengths[n] for n in range(3 * num_batches) if n // 3 // WINDOW == window and n not in batch]
        assert not any(inside[0] < length < inside[-1] for length in rest), "neighbours in length"
