"""Checks the shapes that lwfed's annotations promise while tests run, and gives every test one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tests.nest import Nest
    from tests.tiny import Finished

PACKAGE = Path(__file__).parents[1] / "lwfed"
SHAPED = [path for path in sorted(PACKAGE.rglob("*.py")) if "from jaxtyping import" in path.read_text("utf-8")]
"""Modules that promise shapes. The others are not checked: it would take a third of a tiny run's time."""

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
install_import_hook(
    [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SHAPED], "beartype.beartype"
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps counted architectures and digests of files out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LWFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny experiment, run once: two stages of two rounds. To be read and left alone."""
    from tests.tiny import run_tiny  # after the hook

    return run_tiny(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Nest]:
    """Starts `lwfed` commands without their imports: see tests/nest.py."""
    from tests.e2e.command import environment
    from tests.nest import nest

    with nest(environment()) as made:
        yield made
