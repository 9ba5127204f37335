"""Steps: JSON in, a digest out. Each reads immutable objects, calls the pure middle and writes immutable objects."""
