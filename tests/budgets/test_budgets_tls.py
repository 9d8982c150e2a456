"""The hops of token budgets in TLS: router to rate-limit service, and that one to its store."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator

import pytest
from budgets_harness import APPS, USED, Ask, asker, settled, values
from router_harness import Audit, Client, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Authority, Issuer

AUTHORITY, ISSUER = Authority(), Issuer()
HOST = "router-ratelimit.inference.svc.cluster.local"
BED = {"values": values(ISSUER, whenUnavailable="refuse"), "apps": APPS, "tls": AUTHORITY}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bed, Ask, Callable[[], str | None]]]:
    with Bed(tmp_path_factory.mktemp("bed"), **BED) as bed:
        client = Client(bed.url, ca=AUTHORITY.pem, name=bed.host("router"))
        team, audit = asker(client, ISSUER), Audit(bed)
        try:
            yield bed, team, lambda: audit.of(team("appeals", "drafts"))["budget"]
        finally:
            client.close()


def served(bed: Bed) -> str:
    """The certificate that the rate-limit service serves, by HTTP/2."""
    context = ssl.create_default_context(cadata=AUTHORITY.pem)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((bed.ratelimit.host, 8081), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))


def restart(bed: Bed) -> None:
    """So that no connection from before is left."""
    bed.processes.stop(bed.ratelimit.process)
    bed.ratelimit.start()


def counted(bed: Bed, what: str) -> int:
    return bed.router.stats([f"cluster.ratelimit.ssl.{what}"])[f"cluster.ratelimit.ssl.{what}"]


def test_budgets_count_over_tls(plane):
    bed, team, outcome = plane
    bed.store.clear()
    assert outcome() == "within"
    settled(bed, "team_appeals", USED)
    assert counted(bed, "versions.TLSv1.3") > 0
    with pytest.raises(OSError), socket.create_connection((bed.ratelimit.host, 8081), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        if not plain.recv(9).startswith(b"\0"):
            raise OSError("closed, or an alert: nothing of HTTP/2")


def test_a_renewed_certificate_is_served_again_and_again(plane):
    bed, _, outcome = plane
    for _ in range(3):
        secret = AUTHORITY.secret(HOST)
        bed.ratelimit.mount(secret)
        wait_until(lambda s=secret: served(bed) == s["tls.crt"], "the new one is served")
        assert outcome() == "within"
    bed.ratelimit.mount({**AUTHORITY.secret(HOST), "tls.key": secret["tls.key"]})
    wait_until(lambda: "failed to load TLS key pair" in bed.ratelimit.process.log_path.read_text(), "it says so")
    assert served(bed) == secret["tls.crt"]
    bed.ratelimit.mount(secret)


UNTRUSTED = {
    "another authority's": (lambda: Authority("somebody else").secret(HOST), "fail_verify_error"),
    "of another name": (lambda: AUTHORITY.secret("router-policy.inference.svc.cluster.local"), "fail_verify_san"),
    "too old": (lambda: AUTHORITY.secret(HOST, ended=True), "fail_verify_error"),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_a_service_that_does_not_prove_its_name_is_not_asked(plane, what):
    bed, team, outcome = plane
    secret, why = UNTRUSTED[what]
    before = counted(bed, why)
    # Of the store it needs the right authority all the same.
    bed.ratelimit.mount({**secret(), "ca.crt": AUTHORITY.pem})
    restart(bed)
    try:
        reply = team("appeals", "drafts")
        assert (reply.status, reply.headers["x-plane-reason"]) == (503, "budget-unavailable")
        assert Audit(bed).of(reply)["budget"] == "unavailable"
        assert counted(bed, why) > before
    finally:
        bed.ratelimit.mount(AUTHORITY.secret(HOST))
        restart(bed)
    wait_until(lambda: outcome() == "within", "budgets count again")


@pytest.mark.parametrize("what", ["another authority's", "of another name"])
def test_a_store_that_does_not_prove_its_name_counts_nothing(plane, what):
    bed, _, outcome = plane
    other = Authority("somebody else").secret("localhost") if what == "another authority's" else None
    bed.front.renew(other or AUTHORITY.secret("router-valkey.inference.svc.cluster.local"))
    log = bed.ratelimit.process.log_path
    bed.processes.stop(bed.ratelimit.process)
    try:
        with pytest.raises(Exception, match="certificate"):  # NotReady, with the end of its log
            bed.ratelimit.start()
        assert "x509: certificate" in log.read_text()
    finally:
        bed.front.renew(AUTHORITY.secret("localhost"))
        bed.ratelimit.start()
    wait_until(lambda: outcome() == "within", "budgets count again")
