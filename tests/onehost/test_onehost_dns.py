"""The DNS server answers as a cluster's does for headless Services."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import dns.message
import dns.query
import dns.rcode
import pytest

from inference_plane.onehost.dns import DnsServer

NAME = "clinical-summary.models.svc.cluster.local"


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer({NAME: ["127.18.0.11"]}) as running:
        yield running


def _ask(server: DnsServer, name: str, kind: str = "A") -> dns.message.Message:
    return dns.query.udp(dns.message.make_query(name, kind, use_edns=True), "127.0.0.1", port=server.port, timeout=5)


def _addresses(answer: dns.message.Message) -> set[str]:
    return {record.address for rrset in answer.answer for record in rrset}


def test_addresses_follow_the_mapping(server: DnsServer) -> None:
    assert _addresses(_ask(server, NAME)) == {"127.18.0.11"}
    server.set(NAME, ["127.18.0.11", "127.18.0.12"])
    assert _addresses(_ask(server, NAME.upper() + ".")) == {"127.18.0.11", "127.18.0.12"}


def test_a_name_without_addresses_is_nodata(server: DnsServer) -> None:
    server.set(NAME, [])
    answer = _ask(server, NAME)
    assert answer.rcode() == dns.rcode.NOERROR
    assert not answer.answer and answer.authority[0][0].minimum == 1


def test_ipv6_of_a_known_name_is_nodata(server: DnsServer) -> None:
    answer = _ask(server, NAME, "AAAA")
    assert answer.rcode() == dns.rcode.NOERROR and not answer.answer


def test_an_unknown_name_is_nxdomain_and_logged_once(server: DnsServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [_ask(server, "nobody.invalid").rcode() for _ in range(3)] == [dns.rcode.NXDOMAIN] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "dns: nobody has the name nobody.invalid (type A): NXDOMAIN"
    ]
    server.remove(NAME)
    assert _ask(server, NAME).rcode() == dns.rcode.NXDOMAIN


def test_a_datagram_that_is_no_question_is_survived(server: DnsServer) -> None:
    assert server.respond(b"\xff" * 5) is None
    assert _addresses(_ask(server, NAME)) == {"127.18.0.11"}


def test_questions_are_counted(server: DnsServer) -> None:
    _ask(server, NAME)
    assert server.queries[NAME, "A"] == 1


def test_an_address_that_is_none_is_refused(server: DnsServer) -> None:
    with pytest.raises(ValueError):
        server.set(NAME, ["localhost"])
