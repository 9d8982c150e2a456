"""TLS on both hops of a real Envoy: who proves what to whom, and what becomes of a request where somebody does not."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from router_harness import (
    CHAT,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    Traffic,
    catalogue,
    chat_body,
    helm_test,
    marker,
    model,
    raw_request,
    wait_until,
)

from inference_plane.onehost.bed import CAPTURES, ENGINE_PORT, Bed
from inference_plane.onehost.issuer import Authority
from inference_plane.onehost.replay import ReplayEngine

AUTHORITY = Authority()
MODELS = {
    "summary": model("summary", "region", REGION_TARGET, replicas=2),
    "records": model("records", "cluster"),
}
BED = {"values": catalogue(MODELS, **QUICK), "tls": AUTHORITY}

#: Certificates that prove nothing to the router, for a fleet's host.
UNTRUSTED = {
    "another authority's": lambda host: Authority("somebody else").secret(host),
    "of another name": lambda host: AUTHORITY.secret(f"other.{host}"),
    "of the names around it": lambda host: AUTHORITY.secret(host.partition(".")[2], f"*.{host}"),
    "too old": lambda host: AUTHORITY.secret(host, ended=True),
}


@pytest.fixture(scope="module")
def module_client(module_bed: Bed) -> Iterator[Client]:
    client = Client(module_bed.url, ca=AUTHORITY.pem, name=module_bed.host("router"))
    yield client
    client.close()


@pytest.fixture
def untrusted(bed: Bed) -> Iterator[Bed]:
    """A bed that may give engines what proves nothing; afterwards all is well again."""
    yield bed
    for fleet in MODELS:
        serve(bed, fleet, AUTHORITY.secret(bed.host(fleet)))


def served(address: str, port: int, name: str) -> bytes:
    """The certificate that somebody serves, whatever it proves."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((address, port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        return connection.getpeercert(binary_form=True)


def serve(bed: Bed, fleet: str, secret: dict[str, str]) -> None:
    """The fleet's engines serve this certificate, and no connection from before is left."""
    wanted = ssl.PEM_cert_to_DER_cert(secret["tls.crt"])
    bed.secret(fleet, secret)
    for engine in bed.engines[fleet]:
        wait_until(lambda e=engine: served(e.host, ENGINE_PORT, bed.host(fleet)) == wanted, f"{fleet} serves it")
    for engine in bed.engines[fleet]:
        engine.stop()
        engine.start()


def prompts(bed: Bed) -> str:
    """All that engines and Amazon Bedrock ever got."""
    engines = [request for engines in bed.engines.values() for engine in engines for request in engine.requests]
    return repr([request.body for request in engines]) + repr([call.body for call in bed.bedrock.calls])


def test_a_request_goes_over_tls_to_the_engine(bed: Bed, client: Client) -> None:
    assert bed.url.startswith("https://")
    reply = client.chat("records")
    assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 1), str(reply)
    assert Audit(bed).of(reply)["upstream"].endswith(f":{ENGINE_PORT}")
    seen = bed.router.stats(["cluster.fleet/records.ssl.versions.TLSv1.3", "cluster.fleet/records.ssl.session_reused"])
    assert seen["cluster.fleet/records.ssl.versions.TLSv1.3"] > 0
    assert seen["cluster.fleet/records.ssl.session_reused"] == 0


def test_a_client_can_tell_the_router_from_others(bed: Bed) -> None:
    for ca, name in ((Authority().pem, bed.host("router")), (AUTHORITY.pem, "router.other.svc.cluster.local")):
        client = Client(bed.url, ca=ca, name=name)
        try:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                client.chat("records")
        finally:
            client.close()


def test_the_router_speaks_nothing_in_clear_text(bed: Bed) -> None:
    text = marker()
    body = chat_body("records", text)
    with pytest.raises((ConnectionError, OSError)):
        raw_request(bed.url.replace("https", "http"), f"POST {CHAT} HTTP/1.1\r\nhost: r\r\n\r\n{body}".encode())
    assert text not in prompts(bed)


def test_an_engine_speaks_nothing_in_clear_text(bed: Bed) -> None:
    (engine,) = bed.engines["records"]
    with pytest.raises((ConnectionError, OSError)):
        raw_request(f"http://{engine.host}:{ENGINE_PORT}", b"GET /health HTTP/1.1\r\nhost: e\r\n\r\n")


@pytest.fixture
def curl(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The router's URL in the cluster, and a curl that finds and believes it."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on PATH")
    (tmp_path / "ca.crt").write_text(AUTHORITY.pem)
    host, port = bed.host("router"), bed.url.rpartition(":")[2]
    (tmp_path / ".curlrc").write_text(f'connect-to = "{host}:443:127.0.0.1:{port}"\n')
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "ca.crt"))
    return f"https://{host}"


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_both_versions_of_http(bed: Bed, curl: str, version: str) -> None:
    command = ["curl", "-sS", f"--http{version}", "-w", "%{http_version} %{http_code}", "-o", "/dev/null"]
    done = subprocess.run([*command, f"{curl}/v1/models"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{version} 200"


def test_helm_test_believes_the_plane_s_authority_alone(
    bed: Bed, curl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert helm_test(bed, curl) == 0
    (tmp_path / "ca.crt").write_text(Authority().pem)
    assert helm_test(bed, curl) in (35, 60)  # curl's: not verified; versions differ


@pytest.mark.parametrize("what", UNTRUSTED)
def test_an_engine_that_does_not_prove_its_name_gets_no_prompt(untrusted: Bed, client: Client, what: str) -> None:
    bed = untrusted
    for fleet in MODELS:
        serve(bed, fleet, UNTRUSTED[what](bed.host(fleet)))
    # Health checks go the same way, so the engines are sick.
    bed.wait_for_engines({fleet: 0 for fleet in MODELS})
    stays, restricted, leaves = marker(), marker(), marker()
    replies = [
        client.chat("records", stays),
        client.chat("summary", restricted, {"x-residency": "cluster"}),
        client.chat("summary", leaves),
    ]
    seen = [(reply.status, reply.backend, reply.headers.get("x-plane-reason")) for reply in replies]
    assert seen == [(503, "none", "no-capacity"), (503, "none", "no-capacity"), (200, "bedrock", None)]
    assert stays not in prompts(bed) and restricted not in prompts(bed)
    assert leaves in repr([call.body for call in bed.bedrock.calls])
    assert not any(engine.requests for engines in bed.engines.values() for engine in engines)
    counted = bed.router.stats(f"cluster.fleet/records.ssl.fail_verify_{why}" for why in ("error", "san"))
    assert sum(counted.values()) > 0


def test_a_certificate_for_a_whole_namespace_counts_for_each_engine_in_it(untrusted: Bed, client: Client) -> None:
    bed = untrusted
    serve(bed, "records", AUTHORITY.secret(f"*.{bed.host('records').partition('.')[2]}"))
    bed.wait_for_engines()
    assert client.chat("records").backend == "fleet"


def test_one_engine_that_does_not_prove_its_name_leaves_the_other(bed: Bed, client: Client, tmp_path: Path) -> None:
    """Not that a Secret could do so: it is an impostor at the address of a pod that was."""
    impostor, _ = bed.engines["summary"]
    impostor.stop()
    pair = Authority("somebody else").secret(bed.host("summary"))
    files = {kind: tmp_path / name for kind, name in (("certfile", "tls.crt"), ("keyfile", "tls.key"))}
    for path in files.values():
        path.write_text(pair[path.name])
    with ReplayEngine(CAPTURES, host=impostor.host, port=ENGINE_PORT, **files) as other:
        bed.wait_for_engines({"summary": 1, "records": 1})
        replies = [client.chat("summary") for _ in range(10)]
        assert all((reply.status, reply.backend) == (200, "fleet") for reply in replies)
        assert not other.requests
    impostor.start()
    bed.wait_for_engines()


def test_a_fleet_without_engines_is_no_capacity_as_ever(bed: Bed, client: Client) -> None:
    for fleet in MODELS:
        bed.scale(fleet, 0)
    bed.wait_for_engines({fleet: 0 for fleet in MODELS})
    reply = client.chat("records")
    assert (reply.status, reply.headers["x-plane-reason"], reply.headers["retry-after"]) == (503, "no-capacity", "15")
    assert client.chat("summary").backend == "bedrock"


def test_certificates_are_renewed_again_and_again_without_a_lost_request(bed: Bed, client: Client) -> None:
    port = int(bed.url.rpartition(":")[2])
    bodies = [chat_body("records"), chat_body("summary"), chat_body("summary", stream=True)]
    with Traffic(client, bodies) as traffic:
        for _ in range(3):
            for service in ("router", *MODELS):
                secret = AUTHORITY.secret(bed.host(service))
                wanted = ssl.PEM_cert_to_DER_cert(secret["tls.crt"])
                bed.secret(service, secret)
                places = [("127.0.0.1", port)] if service == "router" else [
                    (engine.host, ENGINE_PORT) for engine in bed.engines[service]
                ]
                for address, at in places:
                    wait_until(lambda a=address, p=at: served(a, p, "x") == wanted, f"{service} serves the new one")
            before = len(traffic.replies)
            wait_until(lambda: len(traffic.replies) > before + 30, "requests go on")
        # A client that comes now.
        newcomer = Client(bed.url, ca=AUTHORITY.pem, name=bed.host("router"))
        try:
            assert newcomer.chat("records").status == 200
        finally:
            newcomer.close()
    assert traffic.lost == [] and all(reply.backend == "fleet" for _, reply in traffic.replies)


def test_another_authority_takes_over_without_a_gap(untrusted: Bed, client: Client) -> None:
    """First both are believed, then the engines change, then the old one goes: what a ConfigMap of both is for."""
    bed, heir = untrusted, Authority("heir")
    secret = AUTHORITY.secret(bed.host("router"))
    with Traffic(client, [chat_body("records"), chat_body("summary")]) as traffic:
        bed.secret("router", {**secret, "ca.crt": AUTHORITY.pem + heir.pem})
        for fleet in MODELS:
            bed.secret(fleet, heir.secret(bed.host(fleet)))
            certificate = ssl.PEM_cert_to_DER_cert((bed.folder / "secrets" / fleet / "tls.crt").read_text())
            for engine in bed.engines[fleet]:
                wait_until(lambda e=engine: served(e.host, ENGINE_PORT, "x") == certificate, "the heir's is served")
        bed.secret("router", {**secret, "ca.crt": heir.pem})
        before = len(traffic.replies)
        wait_until(lambda: len(traffic.replies) > before + 30, "requests go on")
    assert traffic.lost == []
    bed.secret("router", secret)


def test_a_request_that_is_first_to_meet_an_impostor(tmp_path: Path) -> None:
    """Before any health check does: the audit line says why the client got 503."""
    values = catalogue(MODELS, **{**QUICK, "health": {**QUICK["health"], "interval": "60s"}})
    with Bed(tmp_path, values=values, tls=AUTHORITY) as bed:
        client = Client(bed.url, ca=AUTHORITY.pem, name=bed.host("router"))
        try:
            for fleet in MODELS:
                serve(bed, fleet, Authority("somebody else").secret(bed.host(fleet)))
            text = marker()
            reply = client.chat("records", text)
            assert (reply.status, reply.headers["retry-after"]) == (503, "15")
            line = Audit(bed).of(reply)
            assert "CERTIFICATE_VERIFY_FAILED" in line["details"] and "UpstreamConnectionFailure" in line["flags"]
            assert text not in prompts(bed)
            assert client.chat("summary").backend == "bedrock"
        finally:
            client.close()


def test_a_router_without_authorities_believes_nobody(bed: Bed, tmp_path: Path) -> None:
    secret = AUTHORITY.secret(bed.host("router"))
    pair = {name: secret[name] for name in ("tls.crt", "tls.key")}
    with bed.another_router(tmp_path, volumes={"certificate": pair}) as router:
        client = Client(router.url, ca=AUTHORITY.pem, name=bed.host("router"))
        try:
            text = marker()
            assert client.chat("records", text).status == 503
            assert text not in prompts(bed)
        finally:
            client.close()


def test_a_router_without_a_certificate_serves_nobody(bed: Bed, tmp_path: Path) -> None:
    with bed.another_router(tmp_path, volumes={"ca": {"ca.crt": AUTHORITY.pem}}) as router:
        client = Client(router.url, ca=AUTHORITY.pem, name=bed.host("router"))
        try:
            with pytest.raises(aiohttp.ClientError):
                client.chat("records")
        finally:
            client.close()
