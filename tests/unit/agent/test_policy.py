"""Each key of a policy forbids what it should, by its name; no task sets the place; a wrong file is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.agent.policy import Facts, Policy, load_policy, refuse
from lwfed.types.errors import PolicyError, SpecError

FACTS: dict[str, Any] = {
    "experiment": "chest-x", "source": "coco", "objective": "contrastive", "quorum": 5, "peak_bytes": 2**30,
}  # fmt: skip
FITTING: dict[str, Any] = {
    "data": {"coco": "/data"}, "memory": "2GiB", "experiments": ["chest-*"], "objectives": ["contrastive"],
    "min_cohort": 5,
}  # fmt: skip


def test_what_a_policy_allows_passes() -> None:
    refuse(Policy.model_validate(FITTING), Facts(**FACTS))
    refuse(Policy(), Facts(**{**FACTS, "source": "shapes"}))


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("data", {"source": "advance"}),
        ("memory", {"peak_bytes": 2**31 + 1}),
        ("experiments", {"experiment": "faces"}),
        ("objectives", {"objective": "supervised"}),
        ("min_cohort", {"quorum": 4}),
    ],
)
def test_each_key_forbids_and_is_named(key: str, facts: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"`{key}`") as caught:
        refuse(Policy.model_validate(FITTING), Facts(**{**FACTS, **facts}))
    assert caught.value.exit_code == 22 and caught.value.remedy


def test_by_default_only_built_in_data_are_allowed() -> None:
    with pytest.raises(PolicyError, match="built-in data"):
        refuse(Policy(), Facts(**FACTS))


def test_work_that_trains_nothing_needs_no_cohort_and_no_memory() -> None:
    refuse(Policy.model_validate(FITTING), Facts(**{**FACTS, "quorum": None, "peak_bytes": None}))


def test_the_place_is_the_policys_with_a_folder_per_run() -> None:
    policy = Policy(data={"coco": "/data"}, cache="/kept", workers=3, device="cpu")
    place = policy.place("coco", run_id="mine")
    assert (place.root, place.workers, place.device) == ("/data", 3, "cpu")
    assert place.cache == "/kept/mine" and place.shared == "/kept"
    assert policy.place("shapes", run_id="mine").root is None
    assert Policy().place("shapes", run_id="mine").cache is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("memory: much", "memory"),
        ("data: {flickr: /x}", "flickr"),
        ("min_cohort: 0", "min_cohort"),
        ("round_s: -1", "round_s"),
        ("experiments: []", "experiments"),
        ("objectives: [guessing]", "objectives"),
        ("root: /data", "root"),
        ("- a list", "no keys"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_policy_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=named):
        load_policy(path)


def test_a_policy_is_read_and_an_empty_one_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("data: {coco: /data}\nmin_cohort: 4\n", encoding="utf-8")
    assert load_policy(path) == Policy(data={"coco": "/data"}, min_cohort=4)
    path.write_text("# nothing yet\n", encoding="utf-8")
    assert load_policy(path) == Policy()
    with pytest.raises(SpecError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")
