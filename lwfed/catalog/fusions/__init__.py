"""Fusions; each has a `DESCRIPTION`, and its module under the same name in `lwfed.models.fusions`."""
