"""The record that every section of a spec is: frozen, and closed to unknown keys."""

from __future__ import annotations

from lwfed.types.section import Section as Section
