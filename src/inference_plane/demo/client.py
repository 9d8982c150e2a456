"""Sends a scene's requests, all at once, and times the answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from inference_plane.onehost.bedrock import TEST_CREDENTIALS
from inference_plane.onehost.issuer import Issuer

from .scenes import ROUTER, Call

#: Seconds after which a request counts as never answered.
HANG = 120.0
FORGED = Credentials(TEST_CREDENTIALS.access_key, "another-secret-key", TEST_CREDENTIALS.token)


@dataclasses.dataclass
class Answer:
    """One answer as its client sees it. Times are in seconds from the first byte sent; status 0: there was none.

    `answered_by` is `x-inference-backend`, or who was called where nobody behind it answered.
    """

    answered_by: str
    status: int = 0
    attempts: int | None = None
    first_token: float | None = None
    total: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str = ""
    retry_after: str = ""
    request_id: str = ""
    text: str = ""
    """What the model wrote; of any other answer its body."""


def send(calls: Sequence[Call], addresses: Mapping[str, str], region: str, issuer: Issuer) -> list[Answer]:
    """The answers in the order of the calls.

    `addresses` are base URLs by `Call.to`, `region` is that of signatures, `issuer` signs the callers' tokens.
    """
    return asyncio.run(_send(calls, addresses, region, issuer))


async def _send(
    calls: Sequence[Call], addresses: Mapping[str, str], region: str, issuer: Issuer
) -> list[Answer]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=HANG)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        headers = [_token(call, issuer) | _signed(call, addresses[call.to], region) for call in calls]
        sent = zip(calls, headers, strict=True)
        return await asyncio.gather(*(_one(session, call, addresses[call.to], proof) for call, proof in sent))


async def _one(session: aiohttp.ClientSession, call: Call, address: str, proof: Mapping[str, str]) -> Answer:
    url = address + call.path
    headers = {"content-type": "application/json", **call.headers, **proof}
    answer, started = Answer(call.to), time.monotonic()
    try:
        async with session.request(call.method, url, data=call.body, headers=headers) as reply:
            answer.status = reply.status
            backend = reply.headers.get("x-inference-backend", "-")
            answer.answered_by = backend if backend != "-" else call.to
            attempts = reply.headers.get("x-envoy-attempt-count")
            answer.attempts = int(attempts) if attempts else None
            answer.reason = reply.headers.get("x-plane-reason", "")
            answer.retry_after = reply.headers.get("retry-after", "")
            answer.request_id = reply.headers.get("x-request-id", "")
            if reply.content_type == "text/event-stream":
                async for line in reply.content:
                    if line.startswith(b"data: {"):
                        event(answer, json.loads(line[6:]), time.monotonic() - started)
            else:
                whole(answer, await reply.text())
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.status, answer.text = 0, f"no whole answer: {error!r}"
    answer.total = time.monotonic() - started
    return answer


def event(answer: Answer, data: Mapping[str, Any], elapsed: float) -> None:
    """Takes one event of a stream, `elapsed` seconds after the request."""
    for choice in data.get("choices") or []:
        if text := choice.get("delta", {}).get("content"):
            if answer.first_token is None:
                answer.first_token = elapsed
            answer.text += text
    _count(answer, data)


def whole(answer: Answer, body: str) -> None:
    """Takes an answer in one piece."""
    answer.text = body
    try:
        data = json.loads(body)
        answer.text = data["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return
    _count(answer, data)


def _count(answer: Answer, data: Mapping[str, Any]) -> None:
    if usage := data.get("usage"):
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def _token(call: Call, issuer: Issuer) -> dict[str, str]:
    if call.to != ROUTER or not call.team:
        return {}
    return {"authorization": f"Bearer {issuer.token(call.team, seconds=call.token_seconds)}"}


def _signed(call: Call, address: str, region: str) -> dict[str, str]:
    if call.signature == "none":
        return {}
    request = AWSRequest(call.method, address + call.path, data=call.body, headers={"content-type": "application/json"})
    SigV4Auth(TEST_CREDENTIALS if call.signature == "valid" else FORGED, "bedrock", region).add_auth(request)
    return dict(request.headers.items())
