"""A sound profile and a plane's values, for tests to change."""

from __future__ import annotations

from typing import Any

#: Values of a plane with two models, to be rendered by the umbrella with an issuer's `auth`.
PLANE: dict[str, Any] = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "residency": {"geography": "eu"},
        "tls": {"mode": "none"},
        "network": {"policies": False},
        "teams": {"care": {}},
        "models": {
            name: {"source": f"s3://models/{name}/v1/", "accelerator": "l4", "weightsGiB": 15.2, "maxModelLen": 16384,
                   "kvBytesPerToken": 57344, "maxNumSeqs": 8, "residency": "cluster", "replicas": {"min": 1, "max": 2}}
            for name in ("records", "letters")
        },
    },
    "alb-ingress": {"enabled": True, "tls": {"enabled": False}, "inbound": {"cidrs": ["10.0.0.0/16"]}},
}

SOUND: dict[str, Any] = {
    "description": "A test.",
    "seed": 1,
    "users": 5,
    "curve": [{"phase": "flat", "for": "10s", "rate": 2}, {"phase": "up", "for": "20s", "rate": 2, "to": 6}],
    "requests": {"chat": {"model": "m", "prompt": 10, "output": 5}},
    "slo": {"ttft": "500ms"},
}
