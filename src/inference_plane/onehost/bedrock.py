"""A local stand-in for Amazon Bedrock's OpenAI-compatible endpoint, and for the EKS Pod Identity agent.

Real: the SigV4 check (botocore recomputes the signature from the request as it arrived), and, with `--model-url`, the
tokens. Stands in: everything else. Bedrock's own replies were not captured. Errors follow the shape and wording of the
Bedrock runtime API (`{"message": ...}` and `x-amzn-ErrorType`); whether its OpenAI-compatible path words them alike is
not verified, so depend on the status only. Chat completions follow OpenAI's shape. Headers leave with the first token.

The credential endpoint answers as the agent at 169.254.170.23 does: `GET /v1/credentials` with the content of the file
in AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE as `Authorization`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from .replay import Replay, contents, knobs
from .serving import (
    Receive,
    Scope,
    Send,
    ServerThread,
    control_app,
    disconnected,
    read_body,
    reset,
    send_end,
    send_event,
    send_json,
    send_start,
    while_connected,
)
from .surface import Behaviour, Generate, GenerationError

PATH = "/openai/v1/chat/completions"

# Names that AWS's documentation uses for examples; they open nothing.
TEST_CREDENTIALS = Credentials(
    "ASIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "one-host-session-token"
)

# OpenAI's fields of a chat completion request; anything else is refused as an extraneous key.
ALLOWED_KEYS = frozenset(
    """
    model messages max_completion_tokens max_tokens temperature top_p stop stream stream_options n seed
    frequency_penalty presence_penalty logit_bias logprobs top_logprobs response_format tools tool_choice
    parallel_tool_calls reasoning_effort service_tier user metadata""".split()
)

# The refusal that a fault is, as HTTP status and error type; None where it acts later: `cut` resets a stream after two
# tokens, `silent` never answers, `reset` resets the connection instead of an answer.
FAULTS: Mapping[str, tuple[int, str] | None] = {
    "none": None,
    "throttled": (429, "ThrottlingException"),
    "refused": (400, "ValidationException"),
    "unavailable": (503, "ServiceUnavailableException"),
    "error": (500, "InternalServerException"),
    "cut": None,
    "silent": None,
    "reset": None,
}

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)"
    r"/aws4_request"
    r"\s*,\s*SignedHeaders=(?P<headers>[^,\s]+)\s*,\s*Signature=(?P<signature>[0-9a-f]{64})"
)
_CLOCK_SKEW_SECONDS = 300
_MARKER = re.compile(r"\[\[x_bedrock (\{.*?\})\]\]")
_CANNED = Replay(
    ["The", " packet", " documents", " a", " denied", " claim", " and", " its", " appeal", "."], 21, "stop"
)


class Refused(Exception):
    """AWS's refusal of a request: HTTP status, error type and message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status, self.kind, self.message = status, kind, message


def verify(
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes,
    *,
    credentials: Credentials,
    region: str,
    service: str = "bedrock",
    now: datetime.datetime | None = None,
) -> None:
    """Recompute the SigV4 signature of a request as it arrived. Raises Refused with AWS's reason.

    `target` is the path with its query as sent, `headers` the pairs as received. Rules: AWS's "Create a signed AWS API
    request": `host` and every `x-amz-*` header must be signed, the payload's hash must be the payload's, and the time
    may be five minutes off.
    """
    received = HTTPHeaders()
    for name, value in headers:
        received.add_header(name, value)
    if "authorization" not in received:
        raise Refused(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    parts = _AUTHORIZATION.fullmatch(received["authorization"].strip())
    timestamp = received.get("x-amz-date", "")
    if parts is None or not re.fullmatch(r"\d{8}T\d{6}Z", timestamp):
        raise Refused(
            403,
            "IncompleteSignatureException",
            "Authorization header or X-Amz-Date is malformed; it needs AWS4-HMAC-SHA256 with Credential, "
            "SignedHeaders and Signature, and a date as 20260101T000000Z",
        )
    if parts["key"] != credentials.access_key or received.get("x-amz-security-token") != credentials.token:
        raise Refused(403, "UnrecognizedClientException", "The security token included in the request is invalid.")
    for name, found, wanted in (("region", parts["region"], region), ("service", parts["service"], service)):
        if found != wanted:
            raise Refused(
                403, "InvalidSignatureException", f"Credential should be scoped to {name} '{wanted}', not '{found}'."
            )
    signed = parts["headers"].split(";")
    unsigned = {name.lower() for name in received if name.lower() == "host" or name.lower().startswith("x-amz-")} - set(
        signed
    )
    if "host" not in signed or unsigned:
        raise Refused(
            403, "InvalidSignatureException", f"These headers must be signed: {', '.join(sorted(unsigned | {'host'}))}."
        )
    sent = datetime.datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    now = now or datetime.datetime.now(datetime.UTC)
    if abs((now - sent).total_seconds()) > _CLOCK_SKEW_SECONDS or parts["date"] != timestamp[:8]:
        raise Refused(
            403,
            "InvalidSignatureException",
            f"Signature expired: {timestamp} is not within five minutes of {now:%Y%m%dT%H%M%SZ}.",
        )
    if received.get("x-amz-content-sha256", hashlib.sha256(body).hexdigest()) != hashlib.sha256(body).hexdigest():
        raise Refused(
            403, "InvalidSignatureException", "x-amz-content-sha256 is not the hash of the payload that arrived."
        )
    request = AWSRequest(
        method=method, url=f"https://{received['host']}{target}", data=body, headers=dict(received.items())
    )
    request.context["timestamp"] = timestamp
    signer = _AsSigned(credentials, service, region, received, signed)
    canonical = signer.canonical_request(request)
    if not hmac.compare_digest(
        signer.signature(signer.string_to_sign(request, canonical), request), parts["signature"]
    ):
        raise Refused(
            403,
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            f"Secret Access Key and signing method. The canonical request is: {canonical!r}",
        )


class _AsSigned(SigV4Auth):
    """botocore's signer over exactly the headers that the client signed, instead of botocore's own choice."""

    def __init__(
        self, credentials: Credentials, service: str, region: str, received: HTTPHeaders, signed: list[str]
    ) -> None:
        super().__init__(credentials, service, region)
        self._received, self._signed = received, signed

    def headers_to_sign(self, request: AWSRequest) -> HTTPHeaders:
        chosen = HTTPHeaders()
        for name in self._signed:
            for value in self._received.get_all(name) or [""]:
                chosen.add_header(name, value)
        return chosen


@dataclass
class BedrockBehaviour(Behaviour):
    """What may change at run time, as an engine's; the faults are those of FAULTS."""

    faults: ClassVar[Mapping[str, Any]] = FAULTS


@dataclass
class Call:
    """One request that arrived, refused ones too. `status` is None while it runs, `body` where it is no JSON."""

    headers: dict[str, str]
    raw: bytes
    body: dict[str, Any] | None = None
    status: int | None = None
    refusal: str = ""
    aborted: bool = False

    @property
    def prompts(self) -> list[str]:
        """Every text of the prompt."""
        return contents(self.body or {})


@dataclass
class Bedrock:
    """The ASGI application. `models` are the ids that may be invoked in `region`; `generate` makes the tokens."""

    models: frozenset[str]
    region: str = "eu-central-1"
    credentials: Credentials = TEST_CREDENTIALS
    generate: Generate = _CANNED
    behaviour: BedrockBehaviour = field(default_factory=BedrockBehaviour)
    allowed_keys: frozenset[str] = ALLOWED_KEYS
    calls: list[Call] = field(default_factory=list)

    def seen(self, text: str) -> int:
        """How many requests carried `text` anywhere in their bytes: a leak is counted by content, refused or not."""
        return sum(text.encode() in call.raw for call in self.calls)

    def state(self) -> dict[str, Any]:
        """What the control interface shows: behaviour, counts, and the prompts as they came."""
        return {
            **asdict(self.behaviour),
            "requests": len(self.calls),
            "statuses": [call.status for call in self.calls],
            "refusals": [call.refusal for call in self.calls if call.refusal],
            "prompts": [call.prompts for call in self.calls],
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = await read_body(receive)
        if raw is None:
            return
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        call = Call({name.lower(): value for name, value in pairs}, raw)
        self.calls.append(call)
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        try:
            verify(scope["method"], target, pairs, raw, credentials=self.credentials, region=self.region)
            if (scope["method"], scope["path"]) != ("POST", PATH):
                raise Refused(404, "UnknownOperationException", f"{scope['method']} {scope['path']} is not POST {PATH}")
            call.body = body = self._parse(raw)
            behaviour = self._behaviour(body)
            if fault := FAULTS[behaviour.fault]:
                raise Refused(*fault, f"simulated: {behaviour.fault}")
        except Refused as refusal:
            call.status, call.refusal = refusal.status, str(refusal)
            return await self._refuse(send, refusal)
        if behaviour.fault in ("silent", "reset"):
            call.aborted = True
            return reset(scope) if behaviour.fault == "reset" else await disconnected(receive)
        call.aborted = True
        call.aborted = not await while_connected(receive, self._answer(scope, send, call, body, behaviour))

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            body = json.loads(raw, object_pairs_hook=_no_duplicates)
        except ValueError as error:
            raise Refused(400, "ValidationException", f"Malformed input request: {error}") from error
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise Refused(400, "ValidationException", "Malformed input request: #: required key [messages] not found")
        if extra := sorted(set(body) - self.allowed_keys):
            raise Refused(
                400,
                "ValidationException",
                f"Malformed input request: #: extraneous key [{extra[0]}] is not permitted, please reformat "
                "your input and try again.",
            )
        if body.get("model") not in self.models:
            raise Refused(
                404,
                "ResourceNotFoundException",
                f"The provided model identifier is invalid: {body.get('model')!r} in {self.region}.",
            )
        return body

    def _behaviour(self, body: Mapping[str, Any]) -> BedrockBehaviour:
        try:
            return self.behaviour.changed(knobs(body, _MARKER))
        except ValueError as error:
            raise Refused(400, "ValidationException", str(error)) from error

    async def _refuse(self, send: Send, refusal: Refused) -> None:
        await send_json(
            send,
            refusal.status,
            {"message": refusal.message},
            {"x-amzn-errortype": refusal.kind, "x-amzn-requestid": str(uuid.uuid4())},
        )

    async def _answer(
        self, scope: Scope, send: Send, call: Call, body: Mapping[str, Any], behaviour: BedrockBehaviour
    ) -> None:
        head = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": body["model"]}
        headers = {"x-amzn-requestid": str(uuid.uuid4())}
        streams, text, piece = bool(body.get("stream")), "", None
        await asyncio.sleep(behaviour.first_token_delay + (0 if streams else behaviour.answer_delay))
        try:
            async with contextlib.aclosing(self.generate(body, True, behaviour)) as pieces:
                async for piece in pieces:
                    if text:
                        await asyncio.sleep(behaviour.token_delay)
                    text += piece.text
                    if not streams:
                        continue
                    first = call.status is None
                    if first:
                        call.status = 200
                        await send_start(send, 200, "text/event-stream", headers)
                    if behaviour.fault == "cut" and piece.completion_tokens > 2:
                        return reset(scope)
                    delta = {"content": piece.text, **({"role": "assistant"} if first else {})}
                    await send_event(
                        send,
                        {
                            **head,
                            "object": "chat.completion.chunk",
                            "choices": [{"index": 0, "delta": delta, "finish_reason": piece.finish_reason}],
                        },
                    )
            if piece is None:
                raise GenerationError(500, {"error": {"message": "the generation ended without a token"}})
        except GenerationError as error:
            if call.status is None:
                call.status, call.refusal = error.status, str(error)
                return await self._refuse(send, Refused(error.status, "ModelErrorException", str(error)))
            return reset(scope)
        usage = {
            "prompt_tokens": piece.prompt_tokens,
            "completion_tokens": piece.completion_tokens,
            "total_tokens": piece.prompt_tokens + piece.completion_tokens,
        }
        if streams:
            if (body.get("stream_options") or {}).get("include_usage"):
                await send_event(send, {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            await send_event(send, "[DONE]")
            return await send_end(send)
        call.status = 200
        await send_json(
            send,
            200,
            {
                **head,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": piece.finish_reason,
                    }
                ],
                "usage": usage,
            },
            headers,
        )


class CredentialEndpoint:
    """A context manager: the agent's stand-in, on loopback (SDKs and Envoy take plain http from there).

    It writes a fresh token to `token_file` (mode 0600) and serves `credentials` to who presents it. `env` is what a
    router's pod would have from EKS. `served` counts answers, `refused` requests with another token.
    """

    def __init__(
        self,
        token_file: str | Path,
        *,
        credentials: Credentials = TEST_CREDENTIALS,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.token_file = Path(token_file)
        self.served = self.refused = 0
        self._credentials = credentials
        self._token = secrets.token_urlsafe(32)
        self._server = ServerThread(self._app, host, port)

    @property
    def url(self) -> str:
        return f"{self._server.url}/v1/credentials"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.url,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(self.token_file),
        }

    def __enter__(self) -> CredentialEndpoint:
        with open(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self._token)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self.token_file.unlink(missing_ok=True)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        if scope["path"] != "/v1/credentials":
            await send_json(send, 404, {"message": "only GET /v1/credentials is served"})
        elif not hmac.compare_digest(given, self._token):
            self.refused += 1
            await send_json(send, 403, {"message": "the Authorization header is not the content of the token file"})
        else:
            self.served += 1
            until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=6)
            await send_json(
                send,
                200,
                {
                    "AccessKeyId": self._credentials.access_key,
                    "SecretAccessKey": self._credentials.secret_key,
                    "Token": self._credentials.token,
                    "AccountId": "111122223333",
                    "Expiration": f"{until:%Y-%m-%dT%H:%M:%SZ}",
                },
            )


def main(arguments: list[str] | None = None) -> None:
    """Serve the stand-in, its control port and, if wanted, the credential endpoint until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m inference_plane.onehost.bedrock", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--region", default="eu-central-1")
    parser.add_argument("--model-id", action="append", required=True, help="may be given again")
    parser.add_argument("--model-url", help="the real small model; without it replies are canned")
    parser.add_argument("--control-port", type=int, help="GET the state, POST changes of behaviour")
    parser.add_argument(
        "--credentials-port", type=int, help="serve the test credentials as the Pod Identity agent does"
    )
    parser.add_argument("--token-file", help="where the token of the credential endpoint is written")
    parser.add_argument("--certfile", help="PEM; with --keyfile the stand-in serves TLS, as Bedrock does")
    parser.add_argument("--keyfile")
    options = parser.parse_args(arguments)
    if (options.credentials_port is None) != (options.token_file is None):
        parser.error("--credentials-port and --token-file belong together")
    from .engine import LlamaServer, serve_until_terminated  # aiohttp is needed only here

    generate = LlamaServer(options.model_url) if options.model_url else _CANNED
    app = Bedrock(frozenset(options.model_id), options.region, generate=generate)
    servers: list[Any] = [
        ServerThread(app, options.host, options.port, certfile=options.certfile, keyfile=options.keyfile)
    ]
    if options.control_port is not None:
        servers.append(ServerThread(control_app(app.state, app.behaviour.update), "127.0.0.1", options.control_port))
    if options.credentials_port is not None:
        servers.append(CredentialEndpoint(options.token_file, port=options.credentials_port))
    serve_until_terminated(*servers)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two keys of one name are refused: which of them counts would depend on the reader."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return dict(pairs)


if __name__ == "__main__":
    main()
