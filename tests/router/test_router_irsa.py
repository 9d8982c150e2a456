"""IRSA: Envoy assumes the role with the pod's own token, and why that has to be accepted in so many words."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from router_harness import Client, catalogue, model, wait_until

from inference_plane import helm
from inference_plane.onehost.bedrock import TEST_CREDENTIALS, Bedrock
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.processes import Processes, free_addresses
from inference_plane.onehost.router import Router, local_values
from inference_plane.onehost.serving import Receive, Scope, Send, ServerThread, send_json

TARGET = "openai.gpt-oss-120b-1:0"
ROLE = "arn:aws:iam::111122223333:role/inference-inference-router"
MOUNT = "/var/run/secrets/eks.amazonaws.com/serviceaccount"


class Sts:
    """A stand-in for AWS STS, which keeps what it was asked and gives the credentials of the other stand-ins."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.asked.append({key: value for key, (value, *_) in parse_qs(scope["query_string"].decode()).items()})
        keys = {
            "AccessKeyId": TEST_CREDENTIALS.access_key,
            "SecretAccessKey": TEST_CREDENTIALS.secret_key,
            "SessionToken": TEST_CREDENTIALS.token,
            "Expiration": int(time.time()) + 3600,
        }
        reply = {"AssumeRoleWithWebIdentityResponse": {"AssumeRoleWithWebIdentityResult": {"Credentials": keys}}}
        await send_json(send, 200, reply)


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """A certificate that nobody has signed, of nobody."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on PATH to make a certificate for the stand-in of STS")
    files = {"keyfile": str(tmp_path / "key.pem"), "certfile": str(tmp_path / "certificate.pem")}
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nobody", "-days", "1"]
    command = [*request, "-keyout", files["keyfile"], "-out", files["certfile"]]
    subprocess.run(command, check=True, capture_output=True)
    return files


def https_address() -> list[str]:
    try:
        return free_addresses(1, 443)
    except RuntimeError as error:
        pytest.skip(f"Envoy asks STS on port 443, and this user may not listen there: {error}")


def test_the_router_signs_with_the_role_that_its_token_is_good_for(tmp_path: Path, certificate: dict[str, str]) -> None:
    """If this fails because Envoy refuses the certificate, then bedrock.unverifiedSts has become needless."""
    token = tmp_path / "mount" / "token"
    token.parent.mkdir()
    token.write_text("the-pods-own-token")
    sts, bedrock = Sts(), Bedrock(frozenset({TARGET}))
    (address,) = https_address()
    with (
        ServerThread(sts, address, 443, **certificate),
        DnsServer({"sts.eu-central-1.amazonaws.com": [address]}) as dns,
        Processes() as processes,
        ServerThread(bedrock) as bedrock_server,
    ):
        local = local_values(dns_port=dns.port, bedrock_port=bedrock_server.port)
        local["bedrock"]["unverifiedSts"] = True
        values = catalogue({"summary": model("summary", "region", TARGET)}, **local)
        values["global"]["aws"]["accountId"] = "111122223333"
        values["global"]["identity"] = {"mode": "irsa"}
        text = helm.template("router", values=values).text
        assert f"{MOUNT}/token" in text
        router = Router(processes, helm.Render(text.replace(MOUNT, str(token.parent))), tmp_path / "router", {})
        client = Client(router.url)
        try:
            # No engine is ready: the fallback answers, once the credentials are there.
            wait_until(lambda: client.chat("summary", "a letter").status == 200, "an answer of Bedrock", every=0.5)
        finally:
            client.close()
    assert bedrock.seen("a letter") == 1
    asked = sts.asked[0]
    assert (asked["Action"], asked["RoleArn"]) == ("AssumeRoleWithWebIdentity", ROLE)
    assert asked["WebIdentityToken"] == "the-pods-own-token"
