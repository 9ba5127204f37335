from __future__ import annotations

import gc
import threading
from itertools import islice

import pytest
import torch

from lwfed.catalog.sources.shapes import ShapesSize
from lwfed.data.batches import Batch, check_examples, epoch_length, eval_batches, train_batches
from lwfed.data.inputs import InputSettings
from lwfed.data.sources.shapes import open_data
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError

SOURCE = open_data(DataSpec(shapes=ShapesSize(train=11, test=5)))
SETTINGS = InputSettings(
    modalities=("audio", "image", "text"), image_size=32, max_tokens=64, num_mel_bins=16, frames=72
)


def train(count: int, *, first_view: int = 0, seed: str = "5", augment: bool = True, workers: int = 0) -> list[Batch]:
    stream = train_batches(
        SOURCE,
        examples=SOURCE.train,
        settings=SETTINGS,
        batch_size=5,
        seed=seed,
        first_view=first_view,
        augment=augment,
        workers=workers,
    )
    return list(islice(stream, count))


def flat(batch: Batch) -> list[torch.Tensor]:
    assert batch.labels is not None
    return [
        batch.inputs["image"], batch.inputs["audio"], batch.inputs["text"]["ids"], batch.inputs["text"]["mask"],
        batch.labels,
    ]  # fmt: skip


def equal(one: Batch, two: Batch) -> bool:
    return one.ids == two.ids and all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))


def by_id(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: image for batch in batches for name, image in zip(batch.ids, batch.inputs["image"], strict=True)}


def test_a_batch_is_as_agreed() -> None:
    batch = train(1)[0]
    assert (batch.inputs["image"].shape, batch.inputs["image"].dtype) == ((5, 3, 32, 32), torch.float32)
    assert batch.inputs["image"].min() >= -1
    assert batch.inputs["image"].max() <= 1
    assert (batch.inputs["audio"].shape, batch.inputs["audio"].dtype) == ((5, 72, 16), torch.float32)
    assert batch.inputs["text"]["ids"].shape == batch.inputs["text"]["mask"].shape
    assert batch.labels is not None
    labels = {example.id: example.label for example in SOURCE.train}
    assert batch.labels.tolist() == [labels[name] for name in batch.ids]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    state = torch.get_rng_state()
    alone, helped = train(7), train(7, workers=workers)
    assert all(equal(one, two) for one, two in zip(alone, helped, strict=True))
    evaluated = [
        list(eval_batches(SOURCE, examples=SOURCE.test, settings=SETTINGS, batch_size=2, workers=count))
        for count in (0, workers)
    ]
    assert all(equal(one, two) for one, two in zip(*evaluated, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-")]


def test_an_epoch_holds_each_example_once_but_for_a_last_one_alone() -> None:
    assert epoch_length(11, 5) == 2
    assert [len(batch.ids) for batch in train(4)] == [5, 5, 5, 5]
    epochs = [{name for batch in train(4)[n : n + 2] for name in batch.ids} for n in (0, 2)]
    assert [len(epoch) for epoch in epochs] == [10, 10]


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "length"),
    [(10, 5, 2), (12, 5, 3), (11, 5, 2), (3, 32, 1), (2, 2, 1), (3, 2, 1), (1, 32, 0), (0, 4, 0)],
)
def test_epoch_length(num_examples: int, batch_size: int, length: int) -> None:
    assert epoch_length(num_examples, batch_size) == length


def test_views_differ_and_one_view_is_always_the_same() -> None:
    first, again, later = train(2), train(2), train(2, first_view=1)
    assert all(equal(one, two) for one, two in zip(first, again, strict=True))
    assert [batch.ids for batch in first] != [batch.ids for batch in later]
    seen, other = by_id(first), by_id(later)
    assert all(not torch.equal(seen[name], other[name]) for name in seen.keys() & other.keys())
    assert not equal(first[0], train(1, seed="6")[0])


def test_the_second_epoch_is_the_next_view() -> None:
    assert all(equal(one, two) for one, two in zip(train(4)[2:], train(2, first_view=1), strict=True))


def test_without_augmentation_pictures_are_whole_and_captions_still_vary() -> None:
    batches = train(20, augment=False)
    whole = by_id(list(eval_batches(SOURCE, examples=SOURCE.train, settings=SETTINGS, batch_size=4, workers=0)))
    assert all(torch.equal(image, whole[name]) for name, image in by_id(batches).items())
    told = {tuple(ids.tolist()) for batch in batches for ids in batch.inputs["text"]["ids"]}
    assert len(told) > 2 * len(SOURCE.train)


def test_evaluation_holds_every_example_once_in_order_with_its_first_caption() -> None:
    batches = list(eval_batches(SOURCE, examples=SOURCE.test, settings=SETTINGS, batch_size=2, workers=0))
    assert [len(batch.ids) for batch in batches] == [2, 2, 1]
    assert [name for batch in batches for name in batch.ids] == [example.id for example in SOURCE.test]
    ids, mask = batches[0].inputs["text"]["ids"][0], batches[0].inputs["text"]["mask"][0]
    assert bytes(ids[mask][:-1] - 3).decode() == SOURCE.test[0].captions[0]
    assert not list(eval_batches(SOURCE, examples=(), settings=SETTINGS, batch_size=2, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_may_have_a_length_or_be_left_early(workers: int) -> None:
    stream = train_batches(
        SOURCE, examples=SOURCE.train, settings=SETTINGS, batch_size=5, seed="5", first_view=0, augment=False,
        workers=workers, num_batches=3,
    )  # fmt: skip
    assert len(list(stream)) == 3
    stream = train_batches(
        SOURCE, examples=SOURCE.train, settings=SETTINGS, batch_size=5, seed="5", first_view=0, augment=False,
        workers=workers,
    )  # fmt: skip
    next(stream)
    stream.close()
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-")]


def test_one_example_is_too_few() -> None:
    with pytest.raises(DataError, match="1 example"):
        train_batches(
            SOURCE, examples=SOURCE.train[:1], settings=SETTINGS, batch_size=5, seed="5", first_view=0, augment=False,
            workers=0,
        )  # fmt: skip


def test_checking_reads_all_and_reports_progress() -> None:
    told: list[tuple[int, int]] = []
    bad = check_examples(
        SOURCE,
        examples=SOURCE.test,
        modalities=("audio", "image"),
        workers=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert bad == {}
    assert told == [(n, 5) for n in range(1, 6)]
