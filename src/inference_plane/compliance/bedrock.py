"""How far an id of Amazon Bedrock takes a prompt, by the id alone and by the tables that the charts have.

The same decision as `plane.reach` of charts/plane-lib, taken anew from what is rendered: a render that somebody made
with other charts, or changed by hand, gets no benefit of the doubt.
"""

import functools
import re

import yaml

from inference_plane.checkout import CHARTS

#: How far a prompt may travel, nearest first.
RESIDENCIES = ("cluster", "region", "geography", "anywhere")
_HOST = r"(?:vpce-[0-9a-z-]+\.)?bedrock-runtime(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?:vpce\.)?amazonaws\.com(?:\.cn)?"


def rank(residency: object) -> int:
    """The place in RESIDENCIES; -1, nearer than all, for what is no residency."""
    return RESIDENCIES.index(residency) if residency in RESIDENCIES else -1


@functools.cache
def tables() -> tuple[frozenset[str], dict[str, list[str]]]:
    """The providers, and the Regions of each geography's profiles, that charts/plane-lib knows."""
    known = yaml.safe_load((CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]["bedrock"]
    return frozenset(known["providers"]), known["profileRegions"]


def reach(model: str, geography: str) -> str:
    """One of RESIDENCIES, or `hidden` for an id that does not show where it is processed.

    `geography` is the prefix of the plane's own profiles, empty where it has none.
    https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-support.html
    """
    providers, profiles = tables()
    first, dot, rest = model.partition(".")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.:_-]*", model) or not dot or not rest or ":" in first:
        return "hidden"
    if first in profiles or first == "global":
        # A profile is called by prefix, provider and model: what follows a prefix must be a model that is known.
        if rest.partition(".")[0] not in providers:
            return "hidden"
        return "geography" if geography and first == geography and first != "global" else "anywhere"
    return "region" if first in providers else "hidden"


def region_of(host: str) -> str:
    """The Region of a host that is an endpoint of Bedrock's runtime, public or a VPC's; empty for any other host."""
    found = re.fullmatch(_HOST, host)
    return found["region"] if found else ""
