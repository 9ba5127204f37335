"""The data: sources of examples, their partition among clients, and batches."""
