"""TLS on both hops of a real Envoy: who proves what to whom, and what becomes of a request where somebody does not."""

from __future__ import annotations

import pytest
from router_harness import QUICK, REGION_TARGET, Audit, Client, catalogue, marker, model

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Authority

AUTHORITY = Authority()
MODELS = {
    "summary": model("summary", "region", REGION_TARGET, replicas=2),
    "records": model("records", "cluster"),
}
BED = {"values": catalogue(MODELS, **QUICK), "tls": AUTHORITY}


@pytest.fixture(scope="module")
def module_client(module_bed):
    client = Client(module_bed.url, ca=AUTHORITY.pem, name=module_bed.host("router"))
    yield client
    client.close()


def test_both_hops(bed: Bed, client: Client):
    text = marker()
    reply = client.chat("records", text)
    assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 1)
    assert bed.url.startswith("https://")
    line = Audit(bed).of(reply)
    assert line["backend"] == "fleet" and line["upstream"].endswith(":8000")
