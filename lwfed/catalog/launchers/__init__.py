"""Launchers; each has a `DESCRIPTION`, and its module has the same name in `lwfed.launch`."""
