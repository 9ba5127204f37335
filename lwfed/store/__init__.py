"""Stores: immutable objects, refs that commit them, and checkpoints made of content-addressed blocks."""
