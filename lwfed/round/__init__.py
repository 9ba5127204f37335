"""The round engine: a stage's rounds, each client's part of them, and their aggregation."""
