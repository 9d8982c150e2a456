"""Campaigns against the rendered router: many requests, faults on purpose, and a verdict by content."""
