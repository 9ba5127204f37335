"""Clients and the server as Jobs of a Kubernetes cluster."""
