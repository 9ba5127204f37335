"""Data sets that are made from packages; each module has a `make(folder, *, source, ...)`. No package is shipped."""
