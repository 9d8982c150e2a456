"""bedrock.lua: what leaves for Bedrock, and the usage that comes back."""

from __future__ import annotations

import json

import pytest
from lua_harness import load, refusals

TOLD = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":authority": "plane.example",
    ":scheme": "https",
    "x-plane-target": "openai.gpt-oss-120b-1:0",
    "x-plane-authority": "bedrock-runtime.eu-central-1.amazonaws.com",
}
CLIENT = {
    "authorization": "Bearer secret",
    "cookie": "session=1",
    "traceparent": "00-1-1-01",
    "x-residency": "region",
    "x-plane-model": "m",
    "x-plane-target-keys": "seed, n",
    "x-request-id": "1",
    "x-forwarded-for": "10.1.2.3",
    "x-envoy-expected-rq-timeout-ms": "1",
    "transfer-encoding": "chunked",
    "accept-encoding": "gzip",
    "user-agent": "client/1",
    "content-type": "text/plain",
    "accept": "text/event-stream",
}


def send(bedrock, body: bytes | None, **headers: str):
    return bedrock("envoy_on_request", {**TOLD, **headers}, body)


def test_only_listed_headers_leave(bedrock):
    result = send(bedrock, b'{"messages":[]}', **CLIENT)
    assert result.headers == {
        ":method": "POST",
        ":path": "/openai/v1/chat/completions",
        ":authority": "bedrock-runtime.eu-central-1.amazonaws.com",
        ":scheme": "https",
        "content-type": "application/json",
        "content-length": str(len(result.body)),
        "user-agent": "inference-plane",
        "accept": "text/event-stream",
        "x-request-id": "1",
    }


def test_values_leave_byte_for_byte_and_other_keys_stay(bedrock):
    messages = b'[ {"role":"user", "content":"\\u00fc \\"model\\":\\"evil\\" \xff"} ]'
    body = b'{"vllm_xargs":{"messages":1},"model":"m", "temperature" : 0.10 ,"messages":' + messages + b',"user":"j"}'
    assert send(bedrock, body).body == (
        b'{"model":"openai.gpt-oss-120b-1:0","temperature":0.10,"messages":' + messages + b"}"
    )


def test_a_target_may_take_further_keys_but_never_model_or_stream_options(bedrock):
    more = {"x-plane-target-keys": "seed, n,model,stream_options"}
    body = b'{"seed":1,"n":2,"logprobs":true,"model":"m","stream_options":{"a":1}}'
    assert send(bedrock, body, **more).body == b'{"model":"openai.gpt-oss-120b-1:0","seed":1,"n":2}'


@pytest.mark.parametrize("options", [b"", b'"stream_options":{"include_usage":false},', b'"stream_options":null,'])
def test_a_stream_always_reports_its_usage(bedrock, options):
    sent = json.loads(send(bedrock, b"{" + options + b'"stream": true}').body)
    assert sent == {"model": TOLD["x-plane-target"], "stream": True, "stream_options": {"include_usage": True}}
    assert "stream_options" not in json.loads(send(bedrock, b"{" + options + b'"stream":false}').body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [(None, "no_body"), (b"", "not_object"), (b"[]", "not_object"), (b'{"messages":[}', "not_object"),
     (b'{"messages":[],"messages":[1]}', "key_twice"), (b'{"x":1,"x":1}', "key_twice"),
     (b'{"m\\u0061x":1}', "escaped_key")],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_answered_400(bedrock, body, reason):
    result = send(bedrock, body)
    message = refusals()[reason]
    assert result.reply == {":status": "400", "content-type": "application/json", "x-plane-refused": message}
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": 400}
    assert json.loads(result.reply_body) == {"error": error}


@pytest.mark.parametrize(
    "headers",
    [{"x-plane-target": ""}, {"x-plane-target": 'a","x":"'}, {"x-plane-authority": ""}, {"x-plane-authority": "a/b"}],
)
def test_without_a_target_nothing_leaves(bedrock, headers):
    result = send(bedrock, b'{"messages":[]}', **headers)
    assert result.reply[":status"] == "500"
    assert json.loads(result.reply_body)["error"]["type"] == "server_error"
    assert "x-plane-" in result.logged


def test_a_failing_script_answers_instead_of_letting_the_request_through():
    broken = load("bedrock", before=b"local real = table.concat\ntable.concat = function() error('boom') end\n")
    result = broken("envoy_on_request", TOLD, b'{"messages":[]}')
    assert result.reply[":status"] == "500" and "boom" in result.logged


def reply(bedrock, body: bytes | None, **headers: str) -> dict[str, str]:
    """The x-plane-* headers of a Bedrock reply after the filter."""
    given = {":status": "200", "content-type": "application/json", "x-plane-evil": "1", **headers}
    result = bedrock("envoy_on_response", given, body)
    assert result.body == body
    return {name: value for name, value in result.headers.items() if name.startswith("x-plane-")}


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        (
            b'{"choices":[{"usage":1}],"usage":{"prompt_tokens":11,"completion_tokens":5,"total_tokens":16,'
            b'"prompt_tokens_details":{"cached_tokens":3}}}',
            {"x-plane-prompt-tokens": "11", "x-plane-completion-tokens": "5", "x-plane-cached-tokens": "3"},
        ),
        (
            b'{"usage":{"prompt_tokens":11,"completion_tokens":5,"prompt_tokens_details":null}}',
            {"x-plane-prompt-tokens": "11", "x-plane-completion-tokens": "5"},
        ),
        (b'{"usage":{"prompt_tokens":-1,"completion_tokens":"5"}}', {}),
        (b'{"usage":null}', {}),
        (b'{"id":"x"}', {}),
        (b"not json", {}),
        (None, {}),
    ],
)
def test_usage_of_a_json_reply_becomes_headers(bedrock, body, counts):
    assert reply(bedrock, body) == counts
    assert reply(bedrock, body, **{"content-type": "application/json; charset=utf-8"}) == counts


@pytest.mark.parametrize("headers", [{":status": "400"}, {"content-type": "text/event-stream"}])
def test_errors_and_streams_have_no_usage_headers_nor_those_of_the_upstream(bedrock, headers):
    assert reply(bedrock, b'{"usage":{"prompt_tokens":1}}', **headers, **{"x-plane-prompt-tokens": "9"}) == {}
