"""Exports a trained model as plain timm and transformers modules, and serves it behind MLflow's model server."""
