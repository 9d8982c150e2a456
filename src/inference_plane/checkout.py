"""Where things are in a checkout."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"
VALUES = ROOT / "values"

#: Charts that are installed, in the order of their dependencies. The library plane-lib is not one of them.
INSTALLABLE = ("karpenter-nodepools", "vllm", "kserve", "router", "alb-ingress", "inference-plane")
