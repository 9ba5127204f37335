"""Laws of cutting batches into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from time import sleep

import pytest
import torch

from lwfed.data.batches import Batch
from lwfed.round.batching import part, read_ahead, tensors_of, to_device
from lwfed.types.errors import DataError
from tests.tiny import run_tiny

CPU = torch.device("cpu")


def batch_of(size: int) -> Batch:
    return Batch(
        inputs={
            "image": torch.arange(size * 6, dtype=torch.float32).reshape(size, 3, 2, 1),
            "text": {"ids": torch.arange(size * 4).reshape(size, 4), "mask": torch.ones(size, 4, dtype=torch.bool)},
        },
        labels=torch.arange(size),
        ids=tuple(f"example-{n}" for n in range(size)),
    )


@pytest.mark.parametrize("number", [1, 2, 3, 7, 8])
def test_parts_make_up_the_batch_and_are_nearly_equal(number: int) -> None:
    batch = batch_of(8)
    parts = [part(batch, index, number) for index in range(number)]
    assert sum((p.ids for p in parts), ()) == batch.ids
    for n, tensor in enumerate(tensors_of(batch)):
        assert torch.equal(torch.cat([tensors_of(p)[n] for p in parts]), tensor)
    sizes = [len(p.ids) for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_parts_are_views_and_the_whole_is_itself() -> None:
    batch = batch_of(8)
    storage = batch.inputs["image"].untyped_storage().data_ptr()
    assert part(batch, 1, 2).inputs["image"].untyped_storage().data_ptr() == storage
    assert part(batch, 0, 1) is batch
    assert to_device(batch, torch.device("cpu")).inputs["image"] is batch.inputs["image"]


def test_all_tensors_are_found_and_labels_may_be_missing() -> None:
    batch = batch_of(3)
    assert len(tensors_of(batch)) == 4
    unlabelled = Batch(inputs=batch.inputs, labels=None, ids=batch.ids)
    assert len(tensors_of(unlabelled)) == 3 and part(unlabelled, 0, 2).labels is None
    assert part(unlabelled, 0, 2).ids == ("example-0",)


def parts_of(batches: Iterable[Batch], made: list[str]) -> Iterator[list[Batch]]:
    for batch in batches:
        made.append(batch.ids[0])
        yield [part(batch, index, 2) for index in range(2)]


def test_one_batch_is_read_ahead_and_no_more() -> None:
    batches = [batch_of(size) for size in (8, 7, 6, 5)]
    made: list[str] = []
    with closing(read_ahead(parts_of(batches, made), device=CPU)) as found:
        for number, parts in enumerate(found, start=1):
            assert number <= len(made) <= number + 2, "the one in work, the one that is ready, the one that is begun"
            whole = batches[number - 1]
            assert sum((one.ids for one in parts), ()) == whole.ids
            for n, tensor in enumerate(tensors_of(whole)):
                assert torch.equal(torch.cat([tensors_of(one)[n] for one in parts]), tensor)
    assert len(made) == 4


def test_an_error_is_raised_when_its_batch_is_due() -> None:
    def broken() -> Iterator[list[Batch]]:
        yield [batch_of(4)]
        raise DataError("scene-7.jpg is cut short", remedy="fix it")

    found = read_ahead(broken(), device=CPU)
    assert len(next(found)) == 1
    with pytest.raises(DataError, match="scene-7"):
        next(found)


def test_reading_ends_with_its_reader() -> None:
    made: list[str] = []
    with closing(read_ahead(parts_of((batch_of(4) for _ in count()), made), device=CPU)) as found:
        next(found)
    ended = len(made)
    sleep(0.05)
    assert len(made) == ended <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu() -> None:
    """Many of them, so that memory is used again while copies and kernels are in flight."""
    device = torch.device("cuda")
    sums = []
    with closing(read_ahead(([batch_of(512 + n % 7)] for n in range(200)), device=device)) as found:
        for (one,) in found:
            assert one.inputs["image"].device.type == "cuda"
            sums.append((one.inputs["image"].double() ** 2).sum())
    expected = [float((batch_of(512 + n % 7).inputs["image"].double() ** 2).sum()) for n in range(200)]
    assert [float(value) for value in sums] == expected


def test_reading_in_threads_changes_no_bit(tmp_path: Path) -> None:
    alone = run_tiny(tmp_path / "a", "levers.prefix_cache=never")
    helped = run_tiny(tmp_path / "b", "levers.prefix_cache=never", "data.workers=1")
    assert alone.digest == helped.digest
