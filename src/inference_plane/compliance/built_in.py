"""Checkov's own Kubernetes rules that do not apply to the plane, each with the reason. All others run."""

#: id -> why it is not run.
NOT_APPLICABLE: dict[str, str] = {}
