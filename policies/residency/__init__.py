"""Rules of residency: where a prompt can go."""
