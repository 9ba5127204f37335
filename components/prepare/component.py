"""The first task of an experiment: it checks everything that can be wrong before any work starts."""

from typing import NamedTuple

from kfp import dsl

IMAGE = "lwfed"
"""An image with lwfed and kfp; set your own with `components.building.at`."""


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(
    spec: str,
    store: str,
    parent: str = "",
    fresh: bool = False,
) -> NamedTuple("Outputs", [("input_digest", str), ("data_version", str), ("code_version", str)]):  # type: ignore[valid-type]  # kfp reads outputs there
    """Checks the data and prepares the run.

    Args:
        spec: The experiment, as JSON, or `sha256:` and its digest in the store.
        store: The store's URI, such as `s3://bucket/prefix`.
        parent: `RUN:STAGE` of a rerun; empty for none.
        fresh: Train again even if equal work is committed.

    Returns:
        input_digest: Digest of the checkpoint from which the first stage starts; empty for none.
        data_version: Digest of the data and of pretrained weights.
        code_version: Digest of the code that decides numbers.
    """
    from lwfed.drive import tasks

    done = tasks.prepare(spec=spec, store=store, parent=parent, fresh=fresh)
    return done.input_digest, done.data_version, done.code_version
