"""Basic types that every part of lwfed uses, without torch."""
