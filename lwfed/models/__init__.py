"""Models: one encoder per modality behind one protocol, their heads, and how they are built, named and initialised."""
