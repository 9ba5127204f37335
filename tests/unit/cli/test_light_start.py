"""Commands that compute nothing start without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lwfed import environment
from lwfed.spec.load import preset_names

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "mlflow",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "pyarrow",
)
PROGRAM = f"""
import json, sys
from lwfed.cli.main import main
code = 0
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print()
print(json.dumps({{"code": code, "loaded": loaded}}))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["presets"],
        *(["plan", name] for name in preset_names()),
        ["plan", "coco-layerwise", "--json", "--device-memory", "8GiB"],
        ["partition", "--json"],
    ],
    ids=" ".join,
)
def test_starts_without_heavy_libraries(arguments: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env=environment.child_environment(LWFED_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == {"code": 0, "loaded": []}, ended.stderr
