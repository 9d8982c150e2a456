"""A DNS server for one machine: the names that the router's clusters use, answered with loopback addresses.

It answers as a cluster's DNS does for headless Services: one A record a ready pod, NODATA for a Service without ready
pods, NXDOMAIN for a name that nobody has. Wire format by dnspython; UDP only, because the answers are small.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

log = logging.getLogger(__name__)


class DnsServer:
    """A context manager that serves a mutable mapping of names to IPv4 addresses in a thread of its own.

    Names are case-insensitive and may end with a dot. `ttl` is in seconds, for answers and for NODATA and NXDOMAIN
    alike (their SOA minimum). `queries` counts questions as `(name, type)`. Raises OSError where the address cannot be
    bound.
    """

    def __init__(
        self,
        records: Mapping[str, Iterable[str]] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ttl: int = 1,
    ) -> None:
        self.ttl = ttl
        self.queries: Counter[tuple[str, str]] = Counter()
        self._records: dict[str, tuple[str, ...]] = {}
        self._unknown: set[str] = set()
        self._address = (host, port)
        self._stopping = False
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        for name, addresses in (records or {}).items():
            self.set(name, addresses)

    def set(self, name: str, addresses: Iterable[str]) -> None:
        """Answer `name` with these addresses from now on; none of them means NODATA. Raises ValueError if not IPv4."""
        self._records[_key(name)] = tuple(str(IPv4Address(address)) for address in addresses)

    def remove(self, name: str) -> None:
        """Forget `name`: it answers NXDOMAIN from now on. Raises KeyError if it is not known."""
        del self._records[_key(name)]

    @property
    def port(self) -> int:
        """The UDP port, once started."""
        return self._address[1]

    def __enter__(self) -> DnsServer:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._address = self._socket.getsockname()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="dns", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._socket is not None and self._thread is not None
        self._stopping = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:  # closing alone would not wake recvfrom
            waker.sendto(b"", self._address)
        self._thread.join()
        self._socket.close()

    def respond(self, wire: bytes) -> bytes | None:
        """The answer to one datagram; None where it is not a DNS question at all."""
        try:
            query = dns.message.from_wire(wire)
        except Exception as error:  # dnspython raises several families of exceptions on malformed input
            log.warning("dns: ignored a datagram of %d bytes that is no DNS question: %r", len(wire), error)
            return None
        if not query.question:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        question = query.question[0]
        name, kind = _key(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.queries[name, kind] += 1
        addresses = self._records.get(name)
        if addresses is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            if name not in self._unknown:
                self._unknown.add(name)
                log.warning("dns: nobody has the name %s (type %s): NXDOMAIN", name, kind)
        if addresses and question.rdtype == dns.rdatatype.A and question.rdclass == dns.rdataclass.IN:
            response.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "A", *addresses))
        else:
            response.authority.append(
                dns.rrset.from_text(
                    ".", self.ttl, "IN", "SOA", f"ns.invalid. hostmaster.invalid. 1 60 60 60 {self.ttl}"
                )
            )
        return response.to_wire()

    def _serve(self) -> None:
        assert self._socket is not None
        while True:
            wire, client = self._socket.recvfrom(4096)
            if self._stopping:
                return
            answer = self.respond(wire)
            if answer is not None:
                self._socket.sendto(answer, client)


def _key(name: str) -> str:
    return name.rstrip(".").lower()
