"""Breaks of least privilege."""

from inference_plane.compliance.mutations import find, mutation


@mutation("PLANE_LP_01", "every verb")
def _(objects):
    find(objects, "rbac.authorization.k8s.io/Role", "router-policy")["rules"][0]["verbs"] = ["*"]
