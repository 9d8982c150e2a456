"""Kubernetes clusters on this machine, for tests and for a look: a real API server, and what acts on its objects."""
