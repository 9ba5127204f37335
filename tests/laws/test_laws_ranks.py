"""Laws of the ranks of one client: they share the frozen blocks, write one cache as one rank would, and end alike."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lwfed import ranks
from lwfed.data.inputs import InputSettings
from lwfed.data.prefix_cache import CachedPrefix
from lwfed.data.prefix_inputs import Inputs
from lwfed.data.protocol import Example
from lwfed.round import prefix
from lwfed.round.train_client import train_client
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import ClientTask
from lwfed.types.encoded import Codec
from lwfed.types.errors import DataError
from tests.kept import entry_of, kept_whole
from tests.tiny import begun, client_task

KEEP = "levers.prefix_cache=always"
BATCH, COUNT, WIDTH = 3, 14, 4
SETTINGS = InputSettings(("image", "text"), image_size=16, max_tokens=8, vocab_size=384, num_mel_bins=0, frames=0)
TOKENS_A_FILL = 4
"""So few that the tiny experiment's examples make several batches, of which the ranks get unequal numbers."""

CODECS: dict[str, Codec] = {"image": "int8", "text": "bf16"}

Outputs = Iterator[tuple[Tensor, Tensor | None]]


def join(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


def inputs_of(modality: str) -> Inputs:
    examples = tuple(Example(f"{n}", None, ("a",)) for n in range(COUNT))
    return Inputs(modality, examples, SETTINGS, "5eed", False, 1)


def outputs_of(inputs: Inputs) -> Outputs:
    """This rank's batches of some tokens, texts with lengths of their own."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(COUNT, 5, WIDTH, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (COUNT, 1), generator=generator)
    for start in range(ranks.rank() * BATCH, COUNT, ranks.size() * BATCH):
        rows = slice(start, start + BATCH)
        yield tokens[rows], mask[rows] if inputs.modality == "text" else None


def failing(inputs: Inputs, error: Exception) -> Outputs:
    """The second rank fails at its second batch."""
    for number, batch in enumerate(outputs_of(inputs)):
        if ranks.rank() == 1 and number == 1:
            raise error
        yield batch


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keep_on_a_rank(rank: int, folder: str) -> None:
    """Keeps both modalities, and then what fails."""
    join(rank, folder)
    for modality in ("image", "text"):
        inputs = inputs_of(modality)
        kept_whole(Path(folder) / "kept", entry_of(inputs, codec=CODECS[modality]), outputs_of(inputs))
    states = []
    inputs = inputs_of("image")
    for error in (OSError(errno.ENOSPC, "No space left"), DataError("bad.jpg is no image", remedy="remove it")):
        with pytest.raises(type(error)) as caught:
            kept_whole(Path(folder) / "kept", entry_of(inputs, chain=("other",)), failing(inputs, error))
        states.append([type(caught.value).__name__, str(caught.value), getattr(caught.value, "errno", None)])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(states))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_write_the_file_that_one_rank_writes_and_fail_together(tmp_path: Path) -> None:
    mp.spawn(keep_on_a_rank, args=(str(tmp_path),), nprocs=2)
    for modality in ("image", "text"):
        inputs = inputs_of(modality)
        entry = entry_of(inputs, codec=CODECS[modality])
        kept_whole(tmp_path / "alone", entry, outputs_of(inputs))
        assert CachedPrefix(tmp_path / "kept", entry).numbers == list(range(COUNT))
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "alone"), "what failed has left nothing, either"
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == [
        ["OSError", "[Errno 28] No space left", errno.ENOSPC],
        ["DataError", "bad.jpg is no image -> remove it", None],
    ]


def train_on_a_rank(rank: int, folder: str, tasks: list[str], largest_file: int | None = None) -> None:
    """Trains clients; the system may let the second rank write no larger file."""
    join(rank, folder)
    prefix.FILL_TOKENS = TOKENS_A_FILL
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for values in tasks:
        task = ClientTask.model_validate_json(values)
        if rank == 1 and largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
        train_client(task, bench=Workbench.at(task.store))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    dist.destroy_process_group()


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ClientTask]:
    """Returns a client's task in a copy of a store whose second stage is begun."""
    monkeypatch.setattr(prefix, "FILL_TOKENS", TOKENS_A_FILL)
    bench, stage, _ = begun(tmp_path / "begun", KEEP, number=2)

    def copy(name: str) -> ClientTask:
        shutil.copytree(tmp_path / "begun", tmp_path / name)
        task = client_task(bench, stage, "client-000", cache=str(tmp_path / name / "own"))
        return task.model_copy(update={"store": str(tmp_path / name)})

    return copy


@pytest.mark.slow
def test_two_ranks_fill_together_what_one_fills_alone_and_train_to_the_same_bits(
    stores: Callable[[str], ClientTask], tmp_path: Path
) -> None:
    alone, filled, given, nowhere = (stores(name) for name in ("alone", "filled", "given", "nowhere"))
    nowhere = nowhere.model_copy(update={"place": nowhere.place.model_copy(update={"cache": None})})
    one = train_client(alone, bench=Workbench.at(alone.store))
    own = Path("own", "client-000", "prefix")
    shutil.copytree(tmp_path / "alone" / own, tmp_path / "given" / own)
    mp.spawn(
        train_on_a_rank, args=(str(tmp_path), [task.model_dump_json() for task in (filled, given, nowhere)]), nprocs=2
    )
    updates = [train_client(task, bench=Workbench.at(task.store)) for task in (filled, given, nowhere)]
    assert [update["metrics"]["prefix"]["text"] for update in (one, *updates)] == ["filled", "filled", "kept", "filled"]
    kept = files_of(tmp_path / "alone" / own)
    assert len(kept) == 4 and kept == files_of(tmp_path / "filled" / own)
    assert len({update["digest"] for update in updates}) == 1
    assert updates[0]["digest"] != one["digest"], "sums over two ranks are rounded otherwise: two ranks have trained"


@pytest.mark.slow
def test_if_one_rank_has_no_room_all_recompute_in_each_step(
    stores: Callable[[str], ClientTask], tmp_path: Path
) -> None:
    """The system itself refuses the second rank's writes, halfway through the images' file."""
    task = stores("full")
    mp.spawn(train_on_a_rank, args=(str(tmp_path), [task.model_dump_json()], 2000), nprocs=2)
    states = train_client(task, bench=Workbench.at(task.store))["metrics"]["prefix"]
    assert all(why.startswith("recomputed: ") and "too large" in why for why in states.values())
    assert sorted(states) == ["image", "text"]
    assert files_of(tmp_path / "full" / "own" / "client-000" / "prefix") == {}
