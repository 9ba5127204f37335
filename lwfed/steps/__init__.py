"""Steps: the units of work of a pod or process, with a JSON task in and a digest out."""
