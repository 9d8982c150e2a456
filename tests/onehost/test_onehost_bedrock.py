"""The Bedrock stand-in checks what Amazon Bedrock would check, and counts prompts by content."""

from __future__ import annotations

import asyncio
import datetime
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from inference_plane.onehost.bedrock import PATH, TEST_CREDENTIALS, Bedrock, CredentialEndpoint, Refused, verify
from inference_plane.onehost.processes import Processes, free_port
from inference_plane.onehost.serving import ServerThread

MODEL = "openai.gpt-oss-120b-1:0"
HOST = "bedrock-runtime.eu-central-1.amazonaws.com"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "the claim of Ada"}]}

Reply = tuple[int, Any, str]
Post = Callable[..., Reply]


@pytest.fixture
def bedrock() -> Bedrock:
    return Bedrock(frozenset({MODEL}))


@pytest.fixture
def post(bedrock: Bedrock) -> Iterator[Post]:
    with ServerThread(bedrock) as server:
        yield lambda *arguments, **options: _post(server.url, *arguments, **options)


def _sign(
    body: bytes,
    *,
    path: str = PATH,
    credentials: Credentials = TEST_CREDENTIALS,
    region: str = "eu-central-1",
    service: str = "bedrock",
) -> dict[str, str]:
    request = AWSRequest(
        "POST", f"https://{HOST}{path}", data=body, headers={"host": HOST, "content-type": "application/json"}
    )
    SigV4Auth(credentials, service, region).add_auth(request)
    return dict(request.headers.items())


def _post(url: str, body: Any, *, path: str = PATH, headers: dict[str, str] | None = None, **signing: Any) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def post() -> Reply:
        sent = _sign(data, path=path, **signing) if headers is None else headers
        async with aiohttp.ClientSession() as session, session.post(url + path, data=data, headers=sent) as reply:
            return reply.status, reply.headers, await reply.text()

    return asyncio.run(asyncio.wait_for(post(), 30))


def test_a_signed_request_is_answered_in_the_openai_shape(post: Post, bedrock: Bedrock) -> None:
    status, headers, text = post(CHAT)
    reply = json.loads(text)
    assert status == 200 and headers["x-amzn-requestid"]
    assert reply["model"] == MODEL and reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"].startswith("The packet")
    assert reply["usage"] == {"prompt_tokens": 21, "completion_tokens": 10, "total_tokens": 31}
    assert [(call.status, call.prompts) for call in bedrock.calls] == [(200, ["the claim of Ada"])]


def test_a_stream_ends_with_usage_only_where_asked(post: Post) -> None:
    _, headers, text = post({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    events = text.split("\n\n")
    assert headers["content-type"] == "text/event-stream"
    assert events[-2] == "data: [DONE]" and json.loads(events[-3][6:])["usage"]["total_tokens"] == 31
    assert json.loads(events[0][6:])["choices"][0]["delta"] == {"content": "The", "role": "assistant"}
    assert '"usage"' not in post({**CHAT, "stream": True})[2]


@pytest.mark.parametrize(
    ("signing", "kind", "message"),
    [
        (
            {"credentials": Credentials(TEST_CREDENTIALS.access_key, "another secret", TEST_CREDENTIALS.token)},
            "InvalidSignatureException",
            "does not match the signature you provided",
        ),
        (
            {"credentials": Credentials(TEST_CREDENTIALS.access_key, TEST_CREDENTIALS.secret_key, "another session")},
            "UnrecognizedClientException",
            "security token",
        ),
        (
            {"credentials": Credentials("AKIAANOTHERKEY", TEST_CREDENTIALS.secret_key, TEST_CREDENTIALS.token)},
            "UnrecognizedClientException",
            "security token",
        ),
        ({"region": "us-east-1"}, "InvalidSignatureException", "scoped to region 'eu-central-1', not 'us-east-1'"),
        (
            {"service": "bedrock-mantle"},
            "InvalidSignatureException",
            "scoped to service 'bedrock', not 'bedrock-mantle'",
        ),
        ({"headers": {}}, "MissingAuthenticationTokenException", "Missing Authentication Token"),
        ({"headers": {"authorization": "Bearer x"}}, "IncompleteSignatureException", "malformed"),
    ],
)
def test_another_identity_place_or_secret_is_refused(
    post: Post, bedrock: Bedrock, signing: dict[str, Any], kind: str, message: str
) -> None:
    status, headers, text = post(CHAT, **signing)
    assert (status, headers["x-amzn-errortype"]) == (403, kind)
    assert message in json.loads(text)["message"]
    assert bedrock.calls[0].status == 403 and bedrock.seen("the claim of Ada") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda headers: headers | {"X-Amz-Target": "x"}, "must be signed: host, x-amz-target"),
        (lambda headers: headers | {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}, "must be signed"),
        (lambda headers: headers | {"host": "bedrock-runtime.us-east-1.amazonaws.com"}, "does not match"),
        (lambda headers: headers | {"content-type": "text/plain"}, "does not match"),
    ],
)
def test_a_request_changed_after_signing_is_refused(post: Post, change: Callable[..., Any], message: str) -> None:
    data = json.dumps(CHAT).encode()
    status, _, text = post(data, headers=change(_sign(data)))
    assert status == 403 and message in json.loads(text)["message"]
    assert post(data.replace(b"Ada", b"Bob"), headers=_sign(data))[0] == 403


def test_an_old_signature_is_refused() -> None:
    headers = list(_sign(b"{}").items())
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=6)
    with pytest.raises(Refused, match="Signature expired"):
        verify("POST", PATH, headers, b"{}", credentials=TEST_CREDENTIALS, region="eu-central-1", now=later)
    verify("POST", PATH, headers, b"{}", credentials=TEST_CREDENTIALS, region="eu-central-1")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({**CHAT, "model": "clinical-summary"}, 404, "model identifier is invalid: 'clinical-summary' in eu-central-1"),
        ({**CHAT, "guided_json": {}}, 400, "extraneous key [guided_json] is not permitted"),
        ({"model": MODEL}, 400, "required key [messages] not found"),
        (b'{"model": "a", "model": "b", "messages": []}', 400, "duplicate key 'model'"),
        (b"{", 400, "Malformed input request"),
    ],
)
def test_bodies_that_bedrock_does_not_know_are_refused(post: Post, body: Any, status: int, message: str) -> None:
    found, _, text = post(body)
    assert found == status and message in json.loads(text)["message"]


def test_another_path_is_refused(post: Post) -> None:
    assert post(CHAT, path="/v1/chat/completions")[0] == 404


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("throttled", 429, "ThrottlingException"),
        ("unavailable", 503, "ServiceUnavailableException"),
        ("error", 500, "InternalServerException"),
    ],
)
def test_refusals_on_demand(post: Post, bedrock: Bedrock, fault: str, status: int, kind: str) -> None:
    bedrock.behaviour.fault = fault
    found, headers, _ = post(CHAT)
    assert (found, headers["x-amzn-errortype"]) == (status, kind)


def test_a_cut_stream_ends_in_a_reset(post: Post, bedrock: Bedrock) -> None:
    bedrock.behaviour.fault = "cut"
    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        post({**CHAT, "stream": True})
    assert bedrock.calls[0].status == 200


def test_one_request_may_behave_differently(post: Post) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": 'hi [[x_bedrock {"tokens": 2}]]'}]}
    assert json.loads(post(body)[2])["usage"]["completion_tokens"] == 2


def test_a_client_that_leaves_is_noticed(bedrock: Bedrock) -> None:
    bedrock.behaviour.first_token_delay = 600
    data = json.dumps(CHAT).encode()

    async def leave(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            request = asyncio.ensure_future(session.post(url + PATH, data=data, headers=_sign(data)))
            while not bedrock.calls or bedrock.calls[0].body is None:
                await asyncio.sleep(0.01)
            request.cancel()
        while not bedrock.calls[0].aborted:
            await asyncio.sleep(0.01)

    with ServerThread(bedrock) as server:
        asyncio.run(asyncio.wait_for(leave(server.url), 30))
    assert bedrock.calls[0].status is None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH to make a certificate with")
def test_tls_with_the_name_of_the_real_endpoint(bedrock: Bedrock, tmp_path: Path) -> None:
    cert, key, data = tmp_path / "cert.pem", tmp_path / "key.pem", json.dumps(CHAT).encode()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
        + ["-subj", "/CN=one host", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )

    async def post(url: str) -> int:
        trust = ssl.create_default_context(cafile=cert)
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + PATH, data=data, headers=_sign(data), ssl=trust, server_hostname=HOST) as reply,
        ):
            return reply.status

    with ServerThread(bedrock, certfile=str(cert), keyfile=str(key)) as server:
        assert server.url.startswith("https://")
        assert asyncio.run(post(server.url)) == 200


def test_credentials_need_the_token_of_the_file(tmp_path: Path) -> None:
    with CredentialEndpoint(tmp_path / "token") as endpoint:

        async def get(token: str) -> tuple[int, dict[str, str]]:
            url = endpoint.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
            async with aiohttp.ClientSession() as session, session.get(url, headers={"Authorization": token}) as reply:
                return reply.status, await reply.json()

        token_file = Path(endpoint.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
        assert token_file.stat().st_mode & 0o777 == 0o600
        status, given = asyncio.run(get(token_file.read_text()))
        assert (status, given["AccessKeyId"], given["Token"]) == (
            200,
            TEST_CREDENTIALS.access_key,
            TEST_CREDENTIALS.token,
        )
        assert asyncio.run(get("another"))[0] == 403
        assert (endpoint.served, endpoint.refused) == (1, 1)
    assert not token_file.exists()


def test_as_a_process_with_control_and_credentials(tmp_path: Path) -> None:
    port, control, credentials = free_port(), free_port(), free_port()
    with Processes() as processes:
        processes.start(
            "bedrock",
            [
                sys.executable,
                "-m",
                "inference_plane.onehost.bedrock",
                "--port",
                str(port),
                "--model-id",
                MODEL,
                "--control-port",
                str(control),
                "--credentials-port",
                str(credentials),
                "--token-file",
                str(tmp_path / "token"),
            ],
            log_path=tmp_path / "bedrock.log",
            ready=f"http://127.0.0.1:{control}/",
        )
        url = f"http://127.0.0.1:{port}"
        assert _post(url, CHAT)[0] == 200
        changed = json.loads(_post(f"http://127.0.0.1:{control}", {"fault": "throttled"}, path="/", headers={})[2])
        assert changed["fault"] == "throttled" and changed["prompts"] == [["the claim of Ada"]]
        assert _post(url, CHAT)[0] == 429
        status, _, text = _post(f"http://127.0.0.1:{control}", {"fautl": "none"}, path="/", headers={})
        assert status == 400 and "unknown behaviour fautl" in text
        assert (tmp_path / "token").read_text()


def test_the_command_names_what_is_missing() -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "inference_plane.onehost.bedrock",
            "--port",
            "1",
            "--model-id",
            "m",
            "--credentials-port",
            "2",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2 and "--credentials-port and --token-file belong together" in run.stderr
