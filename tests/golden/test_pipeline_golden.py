"""The tiny experiment's pipeline, word for word; `python -m tests.golden.test_pipeline_golden` writes it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pipelines.compile import compile_pipeline
from pipelines.stages import Work
from tests.components.compiled import cluster_spec

GOLDEN = Path(__file__).parent / "pipeline.yaml"


def written() -> str:
    """Compiles; which patch of kfp did it does not count."""
    with tempfile.TemporaryDirectory() as folder:
        done = compile_pipeline(Work(cluster_spec()), Path(folder) / "pipeline.yaml")
        return re.sub(r"(?m)^sdkVersion: .*$", "sdkVersion: kfp", done.path.read_text(encoding="utf-8"))


def test_compiled_pipeline_is_as_written_down() -> None:
    assert written() == GOLDEN.read_text(encoding="utf-8"), "run `python -m tests.golden.test_pipeline_golden`"


if __name__ == "__main__":
    GOLDEN.write_text(written(), encoding="utf-8")
