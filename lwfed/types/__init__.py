"""Words that every part of lwfed uses; no torch here."""
