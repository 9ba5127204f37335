"""The federated algorithms: one client's update, the streamed aggregate, the server's optimiser; no IO here."""
