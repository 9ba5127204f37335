"""The federated algorithms, without IO: client updates, streamed aggregation, server optimisers."""
