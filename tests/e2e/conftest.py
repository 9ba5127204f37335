"""One finished run that many tests start from: training it once is enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.command import Ended, succeed, write_spec


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with spec.yaml and its finished run `first`, not to be changed, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, succeed("run", write_spec(folder), "--run-id", "first", "--json", cwd=folder)


@pytest.fixture
def copied(trained: tuple[Path, Ended], tmp_path: Path) -> Path:
    """A copy of the folder with the finished run."""
    folder = tmp_path / "copied"
    shutil.copytree(trained[0], folder)
    return folder
