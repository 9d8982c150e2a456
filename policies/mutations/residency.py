"""Breaks of residency."""

from inference_plane.compliance.mutations import find, mutation

SCHEME = "alb.ingress.kubernetes.io/scheme"


@mutation("PLANE_RES_01", "an internet-facing load balancer")
def _(objects):
    find(objects, "Ingress")["metadata"]["annotations"][SCHEME] = "internet-facing"


@mutation("PLANE_RES_01", "the scheme in other letters")
def _(objects):
    find(objects, "Ingress")["metadata"]["annotations"][SCHEME] = "Internal"


@mutation("PLANE_RES_01", "no scheme")
def _(objects):
    del find(objects, "Ingress")["metadata"]["annotations"][SCHEME]
