"""A trained model without lwfed: as plain timm and transformers modules, and behind MLflow's model server."""
