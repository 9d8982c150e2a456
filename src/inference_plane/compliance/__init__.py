"""Residency and least privilege, judged from rendered manifests: the rules stand in `policies/`, checkov runs them."""
