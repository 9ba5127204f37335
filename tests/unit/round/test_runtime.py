"""Laws of how a step computes: settings are put back, and a full memory is named."""

from __future__ import annotations

import pytest
import torch

from lwfed.round.runtime import autocast_type, deterministic, pick_device
from lwfed.types.errors import OutOfMemoryError, SpecError

CPU = torch.device("cpu")


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, MemoryError])
def test_settings_are_put_back_whatever_happens(error: type[BaseException] | None) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with deterministic(threads=before[0] + 1):
            assert torch.get_num_threads() == before[0] + 1
            assert torch.are_deterministic_algorithms_enabled()
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt, OutOfMemoryError):
        pass
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_threads_do_not_change_if_none_are_named() -> None:
    before = torch.get_num_threads()
    with deterministic():
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(("named", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_only_a_number_that_is_named_may_exceed_the_cpus(
    monkeypatch: pytest.MonkeyPatch, named: int | None, expected: int
) -> None:
    """A named number decides digests, so it is kept."""
    monkeypatch.setenv("LWFED_CPUS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with deterministic(threads=named):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "the host"), (MemoryError("no room\nat all"), "no room"),
     (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory")],
)  # fmt: skip
def test_too_little_memory_is_reported_with_a_remedy(error: Exception, said: str) -> None:
    with pytest.raises(OutOfMemoryError, match=said) as caught, deterministic():
        raise error
    assert "training.batch_size" in caught.value.remedy and "gradient_accumulation" in caught.value.remedy
    assert caught.value.exit_code == 18


def test_an_error_that_is_ours_is_not_wrapped_again() -> None:
    ours = OutOfMemoryError("x", remedy="y")
    with pytest.raises(OutOfMemoryError) as caught, deterministic():
        raise ours
    assert caught.value is ours


def test_precision_is_fp32_on_a_cpu_unless_asked_for() -> None:
    assert autocast_type("auto", CPU) is None and autocast_type("fp32", CPU) is None
    assert autocast_type("bf16", CPU) is torch.bfloat16


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
    else:
        assert pick_device("auto") == CPU
        with pytest.raises(SpecError, match=r"`launch\.device` is cuda and torch sees no GPU"):
            pick_device("cuda")
