"""A spec travels as text while it is small and by digest when it is not; it arrives as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwfed.run.specs import LONGEST, MARK, pack_spec, unpack_spec
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import NotFoundError, SpecError


def large() -> RunSpec:
    pools = [{"name": f"silo-{n}", "clients": [f"client-{n:03d}"], "env": {"NOTE": "x" * 100}} for n in range(100)]
    return build_spec({"kubernetes": {"image": "lwfed:1", "pools": pools}, "federation": {"num_clients": 100}})


@pytest.mark.parametrize("spec", [RunSpec(), large()], ids=["small", "large"])
def test_a_spec_arrives_as_it_was(tmp_path: Path, spec: RunSpec) -> None:
    store = LocalStore(tmp_path)
    packed = pack_spec(spec, store=store)
    assert to_values(unpack_spec(packed, store=store)) == to_values(spec)
    assert len(packed.encode()) <= LONGEST
    assert packed == pack_spec(spec, store=None)


def test_only_a_large_one_is_stored(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert not pack_spec(RunSpec(), store=store).startswith(MARK)
    assert list(store.list("specs/")) == []
    packed = pack_spec(large(), store=store)
    assert list(store.list("specs/")) == [paths.spec(packed.removeprefix(MARK))]


def test_a_spec_that_is_not_there_or_was_changed_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    packed = pack_spec(large(), store=None)
    with pytest.raises(NotFoundError, match="has no spec"):
        unpack_spec(packed, store=store)
    store.write_ref(paths.spec(packed.removeprefix(MARK)), to_values(RunSpec()))
    with pytest.raises(SpecError, match="damaged"):
        unpack_spec(packed, store=store)
    with pytest.raises(SpecError, match="not JSON"):
        unpack_spec("seed: 1", store=store)
