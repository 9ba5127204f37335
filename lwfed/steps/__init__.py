"""What a pod or a process is told to do, and nothing else: JSON in, a digest out."""
