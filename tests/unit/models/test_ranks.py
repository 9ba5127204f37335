"""Two ranks compute what one process computes on both their rows: outputs, gradients and statistics."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from lwfed import ranks
from lwfed.models.batchnorm import BatchNorm, BatchNorm2d
from tests.unit.models import rank_work

OBJECTIVES = ("info_nce", "pairs", "cross_entropy", "weighted", "aligned", "squares")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_work.run, args=(str(folder),), nprocs=2)
    return rank_work.work(slice(None)), [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shares_and_gradients_sum_to_the_single_process(
    results: tuple[dict[str, Tensor], list[dict[str, Tensor]]], objective: str
) -> None:
    alone, each = results
    for key in ("loss", "weight", "gain", "bias"):  # shared by the ranks: their gradients are summed
        _close(each[0][f"{objective}.{key}"] + each[1][f"{objective}.{key}"], alone[f"{objective}.{key}"])
    for key in ("output", "x"):  # of the ranks' own rows
        _close(torch.cat([own[f"{objective}.{key}"] for own in each]), alone[f"{objective}.{key}"])
    for key in ("running_mean", "running_var"):
        _close(each[0][f"{objective}.{key}"], alone[f"{objective}.{key}"])
        assert torch.equal(each[0][f"{objective}.{key}"], each[1][f"{objective}.{key}"])
    assert each[0][f"{objective}.num_batches_tracked"] == 1


@pytest.mark.slow
def test_maps_are_normalised_over_the_ranks(results: tuple[dict[str, Tensor], list[dict[str, Tensor]]]) -> None:
    """With uneven numbers of rows: each channel's statistics are over all rows and pixels."""
    alone, each = results
    _close(each[0]["maps.weight"] + each[1]["maps.weight"], alone["maps.weight"])
    for key in ("output", "x"):
        _close(torch.cat([own[f"maps.{key}"] for own in each]), alone[f"maps.{key}"])
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        _close(each[0][f"maps.{key}"], alone[f"maps.{key}"])
        assert torch.equal(each[0][f"maps.{key}"], each[1][f"maps.{key}"])


@pytest.mark.slow
def test_frozen_statistics_and_collectives(results: tuple[dict[str, Tensor], list[dict[str, Tensor]]]) -> None:
    alone, each = results
    assert torch.equal(torch.cat([own["frozen.output"] for own in each]), alone["frozen.output"])
    for own, first in zip(each, (0, 5), strict=True):
        assert torch.equal(own["gather.labels"], alone["gather.labels"]) and own["gather.first"] == first
        assert torch.equal(own["total_"], 2 * alone["total_"])


def test_alone_nothing_is_summed_and_batchnorm_is_torchs() -> None:
    assert (ranks.size(), ranks.rank()) == (1, 0)
    x = rank_work.data()["x"]
    assert ranks.total(x) is x and ranks.gather(x) == (x, 0) and ranks.row_counts(x) == [8]
    ours, torchs = BatchNorm(6), torch.nn.BatchNorm1d(6)
    assert torch.equal(ours(x), torchs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True))
    maps = x.unflatten(1, (2, 3, 1))
    assert torch.equal(BatchNorm2d(2)(maps), torch.nn.BatchNorm2d(2)(maps))
