"""Records a run in MLflow from a separate process, so that a slow or dead server never delays training."""
