"""The policy service's part of the Kubernetes API, against a stand-in that knows its routes: lists and the Lease."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from inference_plane.onehost.kubernetes import KubeStandIn

from inference_plane.onehost.serving import ServerThread, send_json
from inference_plane.policy.config import Lease
from inference_plane.policy.fetch import ReadError
from inference_plane.policy.kubernetes import Kubernetes
from inference_plane.policy.lease import Elector
from inference_plane.policy.readings import WaitingPods

NAMESPACE = "inference"
LEASE = Lease(durationSeconds=15, renewSeconds=5)
T = TypeVar("T")


@pytest.fixture
def kube() -> Iterator[KubeStandIn]:
    with KubeStandIn() as kube:
        yield kube


def ask(kube: KubeStandIn, question: Callable[[Kubernetes], Awaitable[T]], **bounds: Any) -> T:
    async def run() -> T:
        async with Kubernetes(kube.url, None, **{"seconds": 5.0, "size": 1024 * 1024, **bounds}) as api:
            return await question(api)

    return asyncio.run(run())


def test_engines_are_the_ready_endpoints_of_engine_services(kube: KubeStandIn) -> None:
    kube.slice(NAMESPACE, "summary", ["10.0.0.1", "10.0.0.2"])
    kube.slice(NAMESPACE, "intake", [])
    kube.slice(NAMESPACE, "draining", ["10.0.0.3"], ready=False, serving=True, terminating=True)
    kube.slice(NAMESPACE, "router", ["10.1.0.1"], engine=False)
    kube.slice("elsewhere", "other", ["10.0.0.9"])
    found = ask(kube, lambda api: api.ready(NAMESPACE))
    assert found == {
        (NAMESPACE, "summary"): ["10.0.0.1", "10.0.0.2"],
        (NAMESPACE, "intake"): [],
        (NAMESPACE, "draining"): [],
    }
    assert ask(kube, lambda api: api.ready(NAMESPACE, "router")) == {(NAMESPACE, "router"): ["10.1.0.1"]}
    assert all(query["resourceVersion"] == ["0"] for _, _, query in kube.asked), "from the API server's cache"


def test_several_slices_of_a_service_are_one(kube: KubeStandIn) -> None:
    kube.slice(NAMESPACE, "summary", ["10.0.0.1"])
    labels = {"kubernetes.io/service-name": "summary", "app.kubernetes.io/component": "engine"}
    second = {
        "metadata": {"name": "summary-y", "labels": labels},
        "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {}}, {"addresses": ["10.0.0.1"]}],
    }
    kube._put("endpointslices", NAMESPACE, "summary-y", second)
    other_family = second | {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}
    kube._put("endpointslices", NAMESPACE, "summary-6", other_family)
    assert ask(kube, lambda api: api.ready(NAMESPACE)) == {(NAMESPACE, "summary"): ["10.0.0.1", "10.0.0.2"]}


@pytest.mark.parametrize("offset", [0, 86400, -86400])
def test_pods_wait_by_the_api_servers_clock(kube: KubeStandIn, offset: float) -> None:
    kube.clock_offset = offset
    kube.pod(NAMESPACE, "a", "summary", age=90 - offset)
    kube.pod(NAMESPACE, "b", "summary", age=30 - offset)
    kube.pod(NAMESPACE, "starting", "summary", age=500 - offset, nodeName="node-1")
    kube.pod(NAMESPACE, "headroom", "headroom", age=500 - offset, component="headroom")
    found = ask(kube, lambda api: api.waiting_pods(NAMESPACE))
    assert set(found) == {(NAMESPACE, "summary")}
    waiting = found[NAMESPACE, "summary"]
    assert waiting.count == 2 and 89 <= waiting.oldest_seconds <= 120
    assert WaitingPods() == WaitingPods(0, 0.0)


@pytest.mark.parametrize(
    ("fault", "kind"), [("403", "status"), ("hang", "timeout"), ("gone", "connection"), ("huge", "size")]
)
def test_each_failure_has_its_kind(kube: KubeStandIn, fault: str, kind: str) -> None:
    for i in range(40):
        kube.slice(NAMESPACE, f"summary-{i}", [f"10.0.0.{i}"])
    kube.fail, kube.hang = (403 if fault == "403" else None), fault == "hang"
    if fault == "gone":
        kube.stop()
    with pytest.raises(ReadError) as error:
        ask(kube, lambda api: api.ready(NAMESPACE), seconds=0.3, size=2000)
    assert error.value.kind == kind
    if fault == "403":
        assert error.value.status == 403 and "as the test wants" in str(error.value)


# The Lease.


class Candidates:
    """Two electors with a clock of their own each, and the Lease between them."""

    def __init__(self, kube: KubeStandIn) -> None:
        self.kube = kube

    def run(self, play: Callable[[Elector, Elector], Awaitable[None]]) -> None:
        async def run(api: Kubernetes) -> None:
            await play(*(Elector(api, NAMESPACE, LEASE, f"{name}_10.0.0.{i}:8090") for i, name in enumerate("ab", 1)))

        ask(self.kube, run)

    def spec(self) -> dict[str, Any]:
        lease = self.kube.lease(NAMESPACE, "router-policy")
        assert lease is not None
        return lease["spec"]


def test_the_first_one_leads_and_the_other_knows_where_it_is(kube: KubeStandIn) -> None:
    async def play(a: Elector, b: Elector) -> None:
        await a.step(0)
        await b.step(0)
        assert a.leading and not b.leading
        assert (a.leader_url, b.leader_url) == (None, "http://10.0.0.1:8090")
        assert a.held(15) and not a.held(15.1)

    Candidates(kube).run(play)


def test_a_lease_is_old_by_the_clock_of_whoever_looks(kube: KubeStandIn) -> None:
    """What the Lease says of the time is for people: its holder's clock may be off by years."""
    lease = {
        "metadata": {"name": "router-policy"},
        "spec": {
            "holderIdentity": "z_10.0.0.9:8090",
            "leaseDurationSeconds": 15,
            "renewTime": "2001-01-01T00:00:00.000000Z",
            "acquireTime": "2101-01-01T00:00:00.000000Z",
            "leaseTransitions": 4,
        },
    }
    kube._put("leases", NAMESPACE, "router-policy", lease)

    async def play(a: Elector, b: Elector) -> None:
        await a.step(1_000_000)
        assert not a.leading, "it was seen just now"
        await a.step(1_000_014.9)
        assert not a.leading
        await a.step(1_000_015)
        assert a.leading
        spec = Candidates(kube).spec()
        assert spec["holderIdentity"] == a.identity and spec["leaseTransitions"] == 5
        await b.step(-500)
        assert not b.leading

    Candidates(kube).run(play)


def test_a_leader_that_renews_stays_and_one_that_does_not_is_replaced(kube: KubeStandIn) -> None:
    async def play(a: Elector, b: Elector) -> None:
        for now in range(0, 60, 5):
            await a.step(now)
            await b.step(now)
            assert a.leading and not b.leading
        acquired = Candidates(kube).spec()["acquireTime"]
        await b.step(69)
        assert not b.leading
        await b.step(70)
        assert b.leading
        assert Candidates(kube).spec()["acquireTime"] != acquired
        await a.step(71)
        assert not a.leading and a.leader_url == "http://10.0.0.2:8090"

    Candidates(kube).run(play)


def test_one_of_two_wins_a_race(kube: KubeStandIn) -> None:
    async def play(a: Elector, b: Elector) -> None:
        await asyncio.gather(a.step(0), b.step(0))
        assert a.leading != b.leading
        winner, loser = (a, b) if a.leading else (b, a)
        await winner.release()
        assert Candidates(kube).spec()["holderIdentity"] == "" and not winner.leading
        await asyncio.gather(a.step(1), b.step(1))
        assert a.leading != b.leading
        await loser.release() if not loser.leading else None
        assert Candidates(kube).spec()["holderIdentity"], "who does not lead gives nothing back"

    Candidates(kube).run(play)


def test_a_leader_without_the_api_goes_on_until_it_hears_of_another(kube: KubeStandIn) -> None:
    async def play(a: Elector, b: Elector) -> None:
        await a.step(0)
        await b.step(0)
        kube.fail = 500
        with pytest.raises(ReadError):
            await a.step(20)
        assert a.leading and not a.held(20)
        with pytest.raises(ReadError):
            await b.step(20)
        assert not b.leading, "nor can anybody else take it"
        kube.fail = None
        await b.step(21)
        assert b.leading
        await a.step(22)
        assert not a.leading

    Candidates(kube).run(play)


# Credentials.


def test_the_pods_token_is_read_for_each_request_and_the_servers_certificate_checked(tmp_path: Path) -> None:
    ca, certificate, key = _certificate(tmp_path)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"])[b"authorization"].decode())
        await send_json(send, 200, {"items": []})

    async def run(url: str, account: Path) -> None:
        async with Kubernetes(url, account, seconds=5, size=1000) as api:
            for token in ("first", "second"):
                (account / "token").write_text(f"{token}\n")
                await api.ready(NAMESPACE)

    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_text(ca)
    with ServerThread(app, certfile=certificate, keyfile=key) as server:
        asyncio.run(run(server.url, account))
        assert seen == ["Bearer first", "Bearer second"]
        (account / "ca.crt").write_text(_certificate(tmp_path)[0])
        with pytest.raises(ReadError, match="certificate verify failed") as error:
            asyncio.run(run(server.url, account))
        assert error.value.kind == "connection" and len(seen) == 2, "another CA's server gets no token"
        (account / "token").unlink()

    async def without() -> None:
        async with Kubernetes("https://127.0.0.1:1", account, seconds=5, size=1000) as api:
            await api.ready(NAMESPACE)

    with pytest.raises(ReadError, match="token: No such file"):
        asyncio.run(without())


def _certificate(folder: Path) -> tuple[str, str, str]:
    """A certificate of 127.0.0.1 that signs itself: as PEM, and its files and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an API server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    files = folder / "server.crt", folder / "server.key"
    files[0].write_text(pem)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return pem, str(files[0]), str(files[1])
