"""Who is served: tokens, teams and access, in a real Envoy on the rendered files. The keys are made here, each time."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from router_harness import (
    CHAT,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    Reply,
    catalogue,
    chat_body,
    helm_test,
    marker,
    model,
    openai_error,
    raw_request,
    wait_until,
)

from inference_plane import helm
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import AUDIENCE, Authority, Issuer
from inference_plane.onehost.replay import ReplayEngine
from inference_plane.onehost.serving import ServerThread

#: `records` is for care alone, `letters` for two teams, `drafts` for every team and may fall back.
MODELS = {
    "records": model("records", "cluster", access={"teams": ["care"]}, servedNames=["org/records"]),
    "letters": model("letters", "cluster", access={"teams": ["care", "appeals"]}),
    "drafts": model("drafts", "region", REGION_TARGET),
}
TEAMS = {"care": {"costCenter": "4710"}, "appeals": {"claim": "grp-4711", "costCenter": "4711"}, "claims": {}}
SKEW = 20


def values(auth: dict[str, Any]) -> dict[str, Any]:
    made = catalogue(MODELS, **QUICK)
    made["global"]["teams"] = TEAMS
    return {**made, "auth": auth}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def access_bed(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Bed]:
    claims = {"team": ["groups"], "subject": ["sub"], "residency": ["https://payer.example/data", "residency"]}
    with Bed(
        tmp_path_factory.mktemp("access"), values=values(issuer.values(clockSkewSeconds=SKEW, claims=claims))
    ) as bed:
        yield bed


@pytest.fixture(scope="module")
def client(access_bed: Bed) -> Iterator[Client]:
    client = Client(access_bed.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def audit(access_bed: Bed) -> Audit:
    return Audit(access_bed)


@pytest.fixture
def bed(access_bed: Bed) -> Bed:
    access_bed.reset()
    return access_bed


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def prompts(bed: Bed) -> int:
    """Chat completions that any engine or Amazon Bedrock has seen."""
    engines = [engine for fleet in bed.engines.values() for engine in fleet if isinstance(engine, ReplayEngine)]
    return sum(len(engine.requests) for engine in engines) + len(bed.bedrock.calls)


def refused(reply: Reply, line: dict[str, Any], status: int, reason: str, kind: str) -> None:
    """A refusal is OpenAI's error, says which kind it is, and leaves a line that says the same."""
    assert (reply.status, reply.headers["x-plane-reason"], openai_error(reply)["type"]) == (status, reason, kind)
    assert (line["status"], line["reason"], line["upstream"]) == (status, reason, None)


# --- tokens ----------------------------------------------------------------------------------------------------------


def unsigned(issuer: Issuer) -> str:
    return jwt.encode(jwt.decode(issuer.token("care"), options={"verify_signature": False}), None, algorithm="none")


def confused(issuer: Issuer) -> str:
    """Signed by HMAC with the public key's text as the secret, which a verifier that trusts `alg` would accept."""
    public = issuer.keys[issuer.name].public_key()
    secret = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": issuer.name}).encode()).rstrip(b"=")
    signed = header + b"." + issuer.token("care").split(".")[1].encode()
    mac = base64.urlsafe_b64encode(hmac.digest(secret, signed, hashlib.sha256)).rstrip(b"=")
    return (signed + b"." + mac).decode()


def changed(issuer: Issuer) -> str:
    """A good token of another team, whose claims were changed after the signature."""
    header, claims, signature = issuer.token("claims").split(".")
    claims = issuer.token("care").split(".")[1]
    return f"{header}.{claims}.{signature}"


def foreign(issuer: Issuer) -> str:
    """Somebody else's key under the name of the issuer's."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = jwt.decode(issuer.token("care"), options={"verify_signature": False})
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": issuer.name})


def unknown_key(issuer: Issuer) -> str:
    claims = jwt.decode(issuer.token("care"), options={"verify_signature": False})
    return jwt.encode(claims, issuer.keys[issuer.name], algorithm="RS256", headers={"kid": "key-99"})


BAD = {
    "expired": (lambda i: i.token("care", seconds=-SKEW - 10), "Jwt_is_expired"),
    "without an end": (lambda i: i.token("care", exp=None), None),
    "not valid yet": (lambda i: i.token("care", nbf=int(time.time()) + SKEW + 30), "Jwt_not_yet_valid"),
    "another issuer": (lambda i: i.token("care", iss="https://evil.example"), "Jwt_issuer_is_not_configured"),
    "no issuer": (lambda i: i.token("care", iss=None), None),
    "another audience": (lambda i: i.token("care", aud="payroll"), "Audiences_in_Jwt_are_not_allowed"),
    "no audience": (lambda i: i.token("care", aud=None), None),
    "signed by another key": (foreign, "Jwt_verification_fails"),
    "changed after it was signed": (changed, "Jwt_verification_fails"),
    "of an unknown key": (unknown_key, None),
    "alg none": (unsigned, None),
    "HMAC with the public key": (confused, None),
    "no token at all": (lambda i: "x", None),
}


@pytest.mark.parametrize(("make", "details"), BAD.values(), ids=BAD)
def test_a_token_that_is_not_good_is_refused_before_anything_is_looked_at(bed, client, audit, issuer, make, details):
    reply = client.ask(CHAT, chat_body("records"), bearer(make(issuer)))
    line = audit.of(reply)
    refused(reply, line, 401, "authentication", "authentication_error")
    assert 'error="invalid_token"' in reply.headers["www-authenticate"]
    assert line["details"].startswith("jwt_authn_access_denied{")
    assert details is None or details in line["details"], line["details"]
    assert (line["team"], line["subject"], line["requested_model"]) == (None, None, None)
    assert prompts(bed) == 0


GOOD = {
    "plain": {},
    "one of several audiences": {"aud": ["payroll", AUDIENCE]},
    "expired within the skew": {"seconds": -SKEW + 8},
    "valid soon, within the skew": {"nbf": int(time.time()) + SKEW - 8},
}


@pytest.mark.parametrize("claims", GOOD.values(), ids=GOOD)
def test_a_good_token_is_served_and_the_audit_line_names_its_caller(bed, client, audit, issuer, claims):
    if "nbf" in claims:
        claims = {"nbf": int(time.time()) + SKEW - 8}
    reply = client.ask(CHAT, chat_body("records"), bearer(issuer.token("care", sub="nurse@payer.example", **claims)))
    assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    line = audit.of(reply)
    assert (line["team"], line["cost_center"], line["subject"]) == ("care", "4710", "nurse@payer.example")


WITHOUT = {
    "nothing": [],
    "an empty header": [("authorization", "")],
    "another scheme": [("authorization", "Basic Y2FyZTpjYXJl")],
    "an API key": [("authorization", "Bearer sk-1234"), ("api-key", "sk-1234")],
    "identity headers of the client's own": [
        ("x-plane-team", "care"),
        ("x-plane-subject", "nurse"),
        ("x-jwt-payload", "eyJncm91cHMiOiJjYXJlIn0"),
        ("x-envoy-internal", "true"),
        ("x-forwarded-client-cert", "By=care"),
    ],
}
ENTRANCES = {
    "the body names the model": (CHAT, chat_body("records")),
    "the path names it": ("/records/v1/chat/completions", chat_body(None)),
    "the list of models": ("/v1/models", None),
    "one model": ("/v1/models/records", None),
    "an unknown path": ("/metrics", None),
    "not even JSON": (CHAT, b"{"),
}


@pytest.mark.parametrize("headers", WITHOUT.values(), ids=WITHOUT)
@pytest.mark.parametrize(("path", "body"), ENTRANCES.values(), ids=ENTRANCES)
def test_no_token_no_service_wherever_one_knocks(bed, client, audit, headers, path, body):
    reply = client.ask(path, body, headers)
    refused(reply, audit.of(reply), 401, "authentication", "authentication_error")
    assert reply.headers["www-authenticate"].startswith("Bearer realm=")
    assert prompts(bed) == 0


def test_a_token_in_the_query_or_a_cookie_is_none(bed, client, issuer):
    token = issuer.token("care")
    assert client.ask(f"/v1/models?access_token={token}").status == 401
    assert client.ask("/v1/models", headers=[("cookie", f"access_token={token}")]).status == 401


def test_two_tokens_are_none(bed, client, issuer):
    good = bearer(issuer.token("care"))
    for headers in (good + bearer(issuer.token("claims")), bearer("x") + good, good + good):
        assert client.ask("/v1/models", headers=headers).status == 401


@pytest.mark.parametrize("line", ["OPTIONS * HTTP/1.1", "CONNECT records:80 HTTP/1.1", "OPTIONS /v1/models HTTP/1.1"])
def test_no_method_and_no_target_goes_past_the_token(bed, line):
    extra = "Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n"
    host = line.split()[1] if "CONNECT" in line else "router"
    status, _, _ = raw_request(bed.url, f"{line}\r\nHost: {host}\r\n{extra}\r\n".encode())
    assert status in (400, 401, 403, 404), status
    assert prompts(bed) == 0


def test_readiness_and_metrics_ask_for_no_token(bed, access_bed):
    host = bed.router.status_url
    for path in ("/ready", "/metrics"):
        status, _, _ = raw_request(host, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert status == 200


def test_the_helm_test_passes_where_nobody_is_served_without_a_token(bed):
    assert helm_test(bed, bed.url) == 0
    assert helm_test(bed, bed.router.status_url) != 0


# --- teams -----------------------------------------------------------------------------------------------------------

NO_TEAM = {
    "a group that nobody has": ("strangers", "the token names no team of this plane"),
    "no claim": (None, "the token names no team of this plane"),
    "an empty list": ([], "the token names no team of this plane"),
    "a team's name that is not its claim": ("appeals", "the token names no team of this plane"),
    "something else than words": ({"care": True}, "the token names no team of this plane"),
    "a number": (4711, "the token names no team of this plane"),
    "two teams": (["care", "grp-4711"], "the token names more than one team"),
}


@pytest.mark.parametrize(("groups", "why"), NO_TEAM.values(), ids=NO_TEAM)
def test_without_exactly_one_team_nobody_is_let_in(bed, client, audit, issuer, groups, why):
    for path, body in ((CHAT, chat_body("drafts")), ("/v1/models", None)):
        reply = client.ask(path, body, [*bearer(issuer.token(groups)), ("x-plane-team", "care")])
        line = audit.of(reply)
        refused(reply, line, 403, "access", "permission_error")
        assert why in openai_error(reply)["message"]
        assert (line["team"], line["subject"]) == (None, "person-1")
    assert prompts(bed) == 0


@pytest.mark.parametrize("groups", ["care", ["care"], ["everyone", "care", "care"]], ids=str)
def test_one_team_among_other_groups_is_enough(bed, client, audit, issuer, groups):
    reply = client.ask(CHAT, chat_body("records"), bearer(issuer.token(groups)))
    assert reply.status == 200, str(reply)
    assert audit.of(reply)["team"] == "care"


def test_neither_the_token_nor_what_it_says_reaches_an_engine(bed, client, issuer):
    token = issuer.token("care", sub="nurse@payer.example")
    assert client.ask(CHAT, chat_body("records"), bearer(token)).status == 200
    (seen,) = bed.engines["records"][0].requests
    assert not [value for value in seen.headers.values() if token in value or "nurse" in value or "care" in value]


def test_a_script_that_fails_lets_nobody_in(tmp_path, issuer):
    class Broken(Bed):
        def rendered(self, values):
            text = super().rendered(values).text
            broken = text.replace("local context, metadata =", "error() local context, metadata =")
            assert broken != text
            return helm.Render(broken)

    with Broken(tmp_path, values=values(issuer.values())) as bed:
        client = Client(bed.url)
        try:
            reply = client.ask(CHAT, chat_body("drafts"), bearer(issuer.token("care")))
        finally:
            client.close()
        assert reply.status == 403, str(reply)
        assert prompts(bed) == 0


# --- access ----------------------------------------------------------------------------------------------------------

#: Who may ask which model, by the claim that means the team.
MAY = {"care": {"records", "letters", "drafts"}, "grp-4711": {"letters", "drafts"}, "claims": {"drafts"}}
FORMS = {
    "body": lambda name: (CHAT, chat_body(name)),
    "path": lambda name: (f"/{name}/v1/chat/completions", chat_body(None)),
    "path that says another model": lambda name: (f"/{name}/v1/chat/completions", chat_body("drafts")),
    "stream": lambda name: (CHAT, chat_body(name, stream=True)),
    "completion": lambda name: ("/v1/completions", {"model": name, "prompt": "hello"}),
    "a path that it does not serve": lambda name: ("/v1/embeddings", {"model": name, "input": "hello"}),
    "the model itself": lambda name: (f"/v1/models/{name}", None),
}


@pytest.mark.parametrize("group", MAY)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_team_calls_the_models_that_are_for_it_and_no_other(bed, client, audit, issuer, group, form):
    headers = [*bearer(issuer.token(group)), ("x-plane-team", "care"), ("x-plane-model", "drafts")]
    team = group.replace("grp-4711", "appeals")
    for name in MODELS:
        path, body = form(name)
        reply = client.ask(path, body, headers)
        line = audit.of(reply)
        assert line["team"] == team
        if body is not None and body.get("model", name) != name:
            assert (reply.status, line["route"]) == (400, "refused"), str(reply)
        elif name in MAY[group]:
            assert reply.status == (404 if "embeddings" in path else 200), str(reply)
            assert line["route"] != f"{name}/access"
        else:
            refused(reply, line, 403, "access", "permission_error")
            assert f"`{team}` may not call the model `{name}`" in openai_error(reply)["message"]
            assert (line["route"], line["requested_model"]) == (f"{name}/access", name)
            assert not bed.engines[name][0].requests
    assert not bed.bedrock.calls


def test_a_further_name_of_a_model_has_the_same_access(bed, client, issuer):
    body = chat_body("org/records")
    assert client.ask(CHAT, body, bearer(issuer.token("care"))).backend == "fleet"
    assert client.ask(CHAT, body, bearer(issuer.token("claims"))).status == 403


@pytest.mark.parametrize("group", MAY)
def test_the_list_has_what_the_caller_may_call(bed, client, issuer, group):
    reply = client.ask("/v1/models", headers=bearer(issuer.token(group)))
    listed = {entry["id"] for entry in reply.json["data"]}
    assert listed == MAY[group] | ({"org/records"} if "records" in MAY[group] else set())


def test_a_model_that_nobody_has_is_unknown_and_not_forbidden(bed, client, audit, issuer):
    reply = client.ask(CHAT, chat_body("no-such-model"), bearer(issuer.token("care")))
    assert (reply.status, audit.of(reply)["team"]) == (404, "care")


def test_the_order_is_token_team_model_access(bed, client, audit, issuer):
    """Each request is wrong in all that comes later too."""
    twice = b'{"model": "records", "model": "drafts"}'
    for token, body, status in (
        (issuer.token("strangers", seconds=-100), twice, 401),
        (issuer.token("strangers"), twice, 403),
        (issuer.token("claims"), twice, 400),
        (issuer.token("claims"), chat_body("records", stream="yes"), 400),
        (issuer.token("claims"), chat_body("records"), 403),
    ):
        assert client.ask(CHAT, body, bearer(token)).status == status
    assert prompts(bed) == 0


def test_a_changed_catalogue_changes_access_without_a_restart(bed, client, issuer):
    """Teams and access stand in the routes, which Envoy reads again."""
    wider = json.loads(json.dumps(bed.values))
    wider["global"]["models"]["records"]["access"]["teams"] = ["care", "claims"]
    wider["global"]["teams"]["claims"]["claim"] = "grp-4712"
    before = (bed.folder / "bootstrap" / "bootstrap.json").read_text()

    def status(group: str) -> int:
        return client.ask(CHAT, chat_body("records"), bearer(issuer.token(group))).status

    assert (status("claims"), status("grp-4712")) == (403, 403)
    bed.router.reload(bed.rendered(wider))
    try:
        wait_until(lambda: status("grp-4712") == 200, "the team's new claim and access")
        assert status("claims") == 403
        assert (bed.folder / "bootstrap" / "bootstrap.json").read_text() == before
    finally:
        bed.router.reload(bed.render)
        wait_until(lambda: status("grp-4712") == 403, "the old routes")


# --- residency -------------------------------------------------------------------------------------------------------

RESIDENCY = [
    # the token's, the header's, the tighter of the two; `drafts` may fall back inside the Region
    (None, None, None),
    ("cluster", None, "cluster"),
    ("region", None, "region"),
    ("anywhere", "cluster", "cluster"),
    ("cluster", "anywhere", "cluster"),
    ("geography", "region", "region"),
    ("Region", "region", "cluster"),
    (["region"], None, "cluster"),
    (False, None, "cluster"),
    (None, "region", "region"),
]


@pytest.mark.parametrize(("claimed", "header", "tighter"), RESIDENCY)
def test_the_tighter_of_token_and_header_decides(bed, client, audit, issuer, claimed, header, tighter):
    bed.scale("drafts", 0)
    bed.wait_for_engines({"drafts": 0})
    data = {} if claimed is None else {"https://payer.example/data": {"residency": claimed}}
    headers = [*bearer(issuer.token("care", **data)), *([("x-residency", header)] if header else [])]
    secret = marker()
    reply = client.ask(CHAT, chat_body("drafts", secret), headers)
    assert audit.of(reply)["requested_residency"] == tighter
    leaves = tighter != "cluster"
    assert (reply.status, reply.backend) == ((200, "bedrock") if leaves else (503, "none")), str(reply)
    assert bed.bedrock.seen(secret) == int(leaves)


# --- keys ------------------------------------------------------------------------------------------------------------


class Proxy:
    """A context manager: an HTTP proxy on loopback that connects to the hosts in `names` and refuses others with 403."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names, self.asked, self.seen = dict(names), [], b""
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                method, target, _ = self.rfile.readline().decode().split(" ", 2)
                while self.rfile.readline() not in (b"\r\n", b""):
                    pass
                outer.asked.append(target)
                host, _, port = target.rpartition(":")
                if method != "CONNECT" or host not in outer.names:
                    self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
                    return
                with socket.create_connection((outer.names[host], int(port)), timeout=10) as there:
                    self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                    back = threading.Thread(target=self.pass_on, args=(there, self.connection), daemon=True)
                    back.start()
                    self.pass_on(self.connection, there, outer)
                    back.join(10)

            @staticmethod
            def pass_on(source: socket.socket, target: socket.socket, log: Proxy | None = None) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        if log:
                            log.seen += data
                        target.sendall(data)
                    target.shutdown(socket.SHUT_WR)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class TestKeysThatAreFetched:
    """The issuer's keys by HTTPS, from a server that has to prove its name."""

    NAME = "issuer.example"

    @pytest.fixture
    def issuer(self) -> Issuer:
        return Issuer()

    @pytest.fixture
    def server(self, tmp_path: Path, issuer: Issuer) -> Iterator[ServerThread]:
        self.authority = Authority()
        with ServerThread(issuer, certfile=self.authority.vouch(tmp_path, self.NAME)) as server:
            yield server

    def bed(self, folder: Path, issuer: Issuer, server: ServerThread, **more: int) -> Bed:
        auth = issuer.values(uri=f"https://{self.NAME}:{server.port}/keys", **more)
        auth["jwks"] |= {"caCertificates": self.authority.pem, "cacheDuration": "1s"}
        (folder / "bed").mkdir()
        return Bed(folder / "bed", values=values(auth), names={self.NAME: ["127.0.0.1"]})

    def test_a_key_is_taken_up_and_a_withdrawn_one_is_dropped(self, tmp_path, issuer, server):
        with self.bed(tmp_path, issuer, server) as bed:
            client = Client(bed.url)
            first = issuer.name

            def status(key: str = "") -> int:
                return client.ask("/v1/models", headers=bearer(issuer.token("care", key=key))).status

            try:
                assert status() == 200
                issuer.rotate()
                wait_until(lambda: status() == 200, "the new key")
                assert status(first) == 200, "both are in the set"
                withdrawn = issuer.token("care", key=first)
                issuer.rotate(keep=1)

                def old() -> int:
                    return client.ask("/v1/models", headers=bearer(withdrawn)).status

                wait_until(lambda: old() == 401, "the withdrawn key is dropped")
                assert status() == 200
            finally:
                client.close()

    def test_a_remembered_token_outlives_its_key_but_not_its_end(self, tmp_path, issuer, server):
        with self.bed(tmp_path, issuer, server, cachedTokens=10, clockSkewSeconds=1) as bed:
            client = Client(bed.url)
            first, ends = issuer.name, time.time() + 15
            remembered, never_seen = (issuer.token("care", key=first, exp=int(ends), sub=sub) for sub in ("a", "b"))

            def status(token: str) -> int:
                return client.ask("/v1/models", headers=bearer(token)).status

            try:
                assert status(remembered) == 200
                issuer.rotate(keep=0)
                wait_until(lambda: status(issuer.token("care", sub=str(time.time()))) == 200, "the new key")
                assert status(never_seen) == 401
                assert status(remembered) == 200, "docs/access.md says so"
                wait_until(lambda: status(remembered) == 401, "the token's end", 30)
                assert time.time() > ends - 1
            finally:
                client.close()

    def test_while_the_issuer_is_away_the_keys_that_are_known_still_hold(self, tmp_path, issuer, server):
        with self.bed(tmp_path, issuer, server) as bed:
            client = Client(bed.url)
            headers = bearer(issuer.token("care"))
            try:
                assert client.ask("/v1/models", headers=headers).status == 200
                issuer.status = 500
                fetches = issuer.fetches
                wait_until(lambda: issuer.fetches >= fetches + 3, "fetches that fail")
                assert client.ask("/v1/models", headers=headers).status == 200
                assert client.ask("/v1/models", headers=bearer("x")).status == 401
            finally:
                client.close()

    def test_without_keys_from_the_start_nobody_is_served_until_they_come(self, tmp_path, issuer, server):
        issuer.status = 500
        with self.bed(tmp_path, issuer, server) as bed:
            client, audit = Client(bed.url), Audit(bed)
            headers = bearer(issuer.token("care"))
            try:
                reply = client.ask("/v1/models", headers=headers)
                refused(reply, audit.of(reply), 503, "authentication", "server_error")
                assert reply.headers["retry-after"]
                issuer.status = 200
                wait_until(lambda: client.ask("/v1/models", headers=headers).status == 200, "the keys")
            finally:
                client.close()

    def test_keys_come_by_a_proxy_that_is_asked_for_the_name(self, tmp_path, issuer, server):
        """No DNS knows the issuer; the proxy does, and sees no more than its name."""
        with Proxy({self.NAME: "127.0.0.1"}) as proxy:
            auth = issuer.values(uri=f"https://{self.NAME}:{server.port}/keys")
            auth["jwks"] |= {"caCertificates": self.authority.pem, "cacheDuration": "1s"}
            auth["jwks"]["proxy"] = f"proxy.example:{proxy.port}"
            (tmp_path / "bed").mkdir()
            with Bed(tmp_path / "bed", values=values(auth), names={"proxy.example": ["127.0.0.1"]}) as bed:
                client = Client(bed.url)
                try:
                    ask = lambda: client.ask("/v1/models", headers=bearer(issuer.token("care"))).status  # noqa: E731
                    wait_until(lambda: ask() == 200, "the keys")
                    assert set(proxy.asked) == {f"{self.NAME}:{server.port}"}
                    assert b"keys" not in proxy.seen and b"GET" not in proxy.seen, "TLS from end to end"
                    issuer.rotate(keep=0)
                    wait_until(lambda: ask() == 200, "the new key")
                    # Who is refused by the proxy has the keys that it had.
                    proxy.names.clear()
                    server.stop()
                    server.start()
                    asked = len(proxy.asked)
                    wait_until(lambda: len(proxy.asked) > asked + 2, "fetches that fail")
                    assert ask() == 200
                finally:
                    client.close()

    def test_a_proxy_that_leads_elsewhere_is_not_believed(self, tmp_path, issuer, server):
        other = Issuer()
        authority = Authority("somebody else")
        (tmp_path / "other").mkdir()
        with (
            ServerThread(other, "127.0.0.2", server.port, certfile=authority.vouch(tmp_path / "other", self.NAME)),
            Proxy({self.NAME: "127.0.0.2"}) as proxy,
        ):
            auth = issuer.values(uri=f"https://{self.NAME}:{server.port}/keys")
            auth["jwks"] |= {"caCertificates": self.authority.pem, "proxy": f"proxy.example:{proxy.port}"}
            (tmp_path / "bed").mkdir()
            with Bed(tmp_path / "bed", values=values(auth), names={"proxy.example": ["127.0.0.1"]}) as bed:
                client = Client(bed.url)
                try:
                    wait_until(lambda: len(proxy.asked) > 2, "the router asks again and again")
                    assert client.ask("/v1/models", headers=bearer(other.token("care"))).status == 503
                    assert other.fetches == 0
                finally:
                    client.close()

    @pytest.mark.parametrize("wrong", ["another name", "another authority"])
    def test_keys_of_somebody_else_are_not_believed(self, tmp_path, issuer, wrong):
        self.authority = Authority()
        by = Authority() if wrong == "another authority" else self.authority
        name = "other.example" if wrong == "another name" else self.NAME
        with (
            ServerThread(issuer, certfile=by.vouch(tmp_path, name)) as server,
            self.bed(tmp_path, issuer, server) as bed,
        ):
            client = Client(bed.url)
            try:
                time.sleep(2)
                assert client.ask("/v1/models", headers=bearer(issuer.token("care"))).status != 200
                assert issuer.fetches == 0
            finally:
                client.close()
