"""What is shown of whole logs that a real Kubeflow Pipelines 2.17.0 kept: lwfed's own lines, without Kubeflow's."""

from __future__ import annotations

import re

import pytest

from pipelines.logs import own_lines
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.components.recorded import FOLDER, whole_logs

THEIRS = re.compile(r"[IWEF]\d{4} .*\.go:\d+\]|\[KFP Executor")
"""What opens a line of Kubeflow's launcher or executor."""
JSON = re.compile(r'\s*("[\w-]+": |[]{}[],?$)')
"""What opens a line of their JSON."""
OWN = re.compile(
    r"stage \d|  (client-\d|server |round )|\w+-[0-9a-f]{8} |warning: |error: |Traceback|  File |\w+(\.\w+)*Error: "
)
"""What opens a line of lwfed's, or of a traceback out of it."""
LOGS = {
    f"{path.name.removesuffix('.json.xz')}-{node}": text
    for path in sorted(FOLDER.glob("*.json.xz"))
    for node, text in whole_logs(path.name.removesuffix(".json.xz")).items()
}


@pytest.mark.parametrize("name", LOGS)
def test_no_line_of_kubeflows_is_left_and_all_of_lwfeds_are(name: str) -> None:
    lines = LOGS[name].splitlines()
    own = list(own_lines(lines))
    assert not [line for line in own if THEIRS.match(line) or JSON.match(line)]
    assert [line for line in own if OWN.match(line)] == [line for line in lines if OWN.match(line)]
    assert list(own_lines(own)) == own
    left = iter(lines)
    assert all(line in left for line in own)  # none is made up, and their order stays


def test_recorded_logs_have_much_of_both() -> None:
    lines = [line for text in LOGS.values() for line in text.splitlines()]
    assert len(LOGS) > 20
    assert sum(OWN.match(line) is not None for line in lines) > 100
    assert sum(THEIRS.match(line) is not None for line in lines) > 400


@pytest.mark.parametrize("name", ["whole-logs", "second-try", "secret-missing", "secret-there"])
def test_the_command_leaves_kubeflows_lines_out_unless_all_are_wanted(name: str, lwfed: Command, kfp: State) -> None:
    run_id = kfp.play(name, start=-1)
    few, many = lwfed("logs", run_id), lwfed("logs", run_id, "--all")
    assert few.code == many.code == 0, few.err + many.err
    shown, whole = parts(few.out), parts(many.out)
    assert list(shown) == list(whole)
    for head, lines in shown.items():
        assert [line for line in whole[head] if OWN.match(line)] == [line for line in lines if OWN.match(line)]
        theirs = [line for line in lines if THEIRS.match(line) or JSON.match(line)]
        assert bool(theirs) == (", its driver" in head), head  # which has no other words, and is shown where it fails
    assert all(THEIRS.match(lines[0]) for lines in whole.values())


def test_a_driver_that_fails_is_shown_with_its_reason(lwfed: Command, kfp: State) -> None:
    """Kubeflow Pipelines' own driver of a task fails where Argo tries the whole pipeline again."""
    out = lwfed("logs", kfp.play("second-try", start=-1)).out
    (driver,) = [lines for head, lines in parts(out).items() if ", its driver" in head]
    assert 'two tasks have the same task name "exit-handler-1_' in driver[-1]


def parts(out: str) -> dict[str, list[str]]:
    """Returns what stands under each head."""
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        if line.startswith("-- "):
            found[line] = lines = []
        else:
            lines.append(line)
    return found
