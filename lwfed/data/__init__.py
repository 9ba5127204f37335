"""The data: where examples come from, how clients share them, and how they become batches."""
