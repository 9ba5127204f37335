"""The example in docs/export.md loads an export without lwfed and prints the Recall@1 that the run reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lwfed.export.export import export_run
from tests.unit.steps import tiny_runs

PAGE = Path(__file__).parents[2] / "docs/export.md"


@pytest.mark.slow
def test_the_example_reproduces_the_reported_recall(tmp_path: Path) -> None:
    bench, summary = tiny_runs.run(tiny_runs.spec("image", "text", store=tmp_path / "store"))
    export_run(summary["run_id"], tmp_path / "exports" / "shapes", bench=bench, with_test_data=True)
    code = PAGE.read_text(encoding="utf-8").partition("<!-- example")[2].partition("```python")[2].partition("```")[0]
    alone = f'import sys\nsys.modules["lwfed"] = None  # an import of it would fail\n{code}'
    ended = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reported = summary["metrics"]["test/t2i/R@1"]
    assert ended.stdout.splitlines()[-1] == f"text-to-image Recall@1: {reported:.6f}"
