"""Laws of reading in threads: whatever goes wrong reaches the reader in time, with the example's name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lwfed.data.batches import check_examples, eval_batches, train_batches
from lwfed.data.inputs import InputSettings
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.types.errors import DataError, LwfedError, OutOfMemoryError

SETTINGS = InputSettings(modalities=("image",), image_size=8)
BAD = "photo-5"


@dataclass(frozen=True)
class Folder:
    """A source of plain pictures, one of which is read in a way of its own."""

    read_bad: Callable[[], object]
    train: tuple[Example, ...] = tuple(Example(id=f"photo-{n}", label=0, captions=("a",)) for n in range(8))
    classes: tuple[str, ...] = ("a",)
    seen: list[str] = field(default_factory=list)

    def examples(self, split: str) -> tuple[Example, ...]:
        return self.train

    def version(self) -> str:
        return "1"

    def image(self, example: Example) -> Image.Image:
        self.seen.append(example.id)
        if example.id == BAD:
            self.read_bad()
        return Image.new("RGB", (9, 7), "red")

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        raise DataError("there are no sounds")

    def series(self, example: Example, modality: str) -> Signal:
        raise DataError("there are no sensors")


def stop() -> None:
    raise StopIteration


def too_much() -> None:
    np.empty(1 << 60, dtype=np.uint8)


def train(source: Folder, workers: int) -> list[object]:
    return list(
        train_batches(
            source, examples=source.train, settings=SETTINGS, batch_size=3, seed="5", first_view=0, augment=False,
            workers=workers, num_batches=3,
        )
    )  # fmt: skip


def evaluate(source: Folder, workers: int) -> list[object]:
    return list(eval_batches(source, examples=source.train, settings=SETTINGS, batch_size=3, workers=workers))


def check(source: Folder, workers: int) -> dict[str, str]:
    return check_examples(source, examples=source.train, modalities=("image",), workers=workers)


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that gives nothing until the test is over."""
    monkeypatch.setenv("LWFED_READ_PATIENCE_S", "0.3")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("read", [train, evaluate, check])
def test_a_read_that_does_not_end_is_named_in_time(
    pipe: Path, read: Callable[[Folder, int], object], workers: int
) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=f"{BAD} is still not read after 0.3 s") as caught:
        read(Folder(pipe.read_bytes), workers)
    assert "LWFED_READ_PATIENCE_S" in caught.value.remedy
    assert time.monotonic() - started < 30
    with pipe.open("wb"):
        """Ends the read."""


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize(
    ("fail", "kind"),
    [(stop, DataError), (too_much, OutOfMemoryError), (lambda: 1 // 0, DataError), (lambda: [][0], DataError)],
)
def test_whatever_a_reader_raises_arrives_with_the_examples_name(
    read: Callable[[Folder, int], object], fail: Callable[[], object], kind: type[LwfedError], workers: int
) -> None:
    with pytest.raises(kind, match=BAD) as caught:
        read(Folder(fail), workers)
    assert caught.value.remedy


@pytest.mark.parametrize("workers", [0, 2])
def test_checking_lists_what_a_source_fails_on(workers: int) -> None:
    bad = check(Folder(lambda: 1 // 0), workers)
    assert set(bad) == {BAD} and "ZeroDivisionError" in bad[BAD]
    with pytest.raises(OutOfMemoryError, match=BAD):
        check(Folder(too_much), workers)


@pytest.mark.parametrize("text", ["soon", "-1", "inf"])
def test_a_patience_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LWFED_READ_PATIENCE_S", text)
    with pytest.raises(LwfedError, match="LWFED_READ_PATIENCE_S") as caught:
        evaluate(Folder(int), 1)
    assert caught.value.exit_code == 10


PROGRAM = """
import sys
from pathlib import Path
from lwfed.launch.exits import run_to_exit
from tests.unit.data.test_reading import Folder, evaluate
run_to_exit(lambda: evaluate(Folder(Path(sys.argv[1]).read_bytes), 2))
"""


def test_a_process_ends_although_a_read_does_not(pipe: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(pipe)], capture_output=True, text=True, timeout=100)
    assert ended.returncode == DataError.exit_code
    assert ended.stderr.startswith(f"error: {BAD} ") and len(ended.stderr.splitlines()) == 1
