"""What happened, told as records: to JSON lines always, to MLflow where it can be reached."""
