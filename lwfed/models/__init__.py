"""Models: one encoder a modality behind one protocol, their heads, and how they are built, named and initialised."""
