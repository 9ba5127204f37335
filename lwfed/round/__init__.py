"""The round engine: a stage's rounds, each client's part in them, and their aggregation."""
