"""Where objects live: immutable blobs, refs that commit them, and checkpoints made of content-addressed blocks."""
