"""What is simulated of time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds that are simulated. The defaults are of the order that docs/load.md gives; no run here measured them."""

    boot: float = 40.0
    image: float = 40.0
    weights: float = 30.0


#: The same, for people.
TIMES = {
    "boot": "seconds from a launched instance to its node",
    "image": "seconds that an image takes, once a node",
    "weights": "seconds from a started container to an engine that answers",
}
