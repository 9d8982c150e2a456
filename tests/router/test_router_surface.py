"""What of vLLM's HTTP surface a client reaches: the APIs of the model's `api`, and nothing else.

The engine here answers whatever it is asked, so that only the router can say no.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from router_harness import (
    QUICK,
    REGION_TARGET,
    Client,
    catalogue,
    chat_body,
    model,
    openai_error,
    raw_request,
    wait_until,
)

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.serving import Receive, Scope, Send, read_body, send_json

APIS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
}

#: Whatever else vLLM serves, depending on the model, on flags and on VLLM_SERVER_DEV_MODE. Written down from the names
#: that its releases up to 0.32 have had; it need not be whole, as the router lets through what it knows and no more.
CLOSED = """
    / /health /load /ping /version /metrics /server_info /docs /redoc /openapi.json
    /tokenize /detokenize /tokenizer_info /derender
    /pooling /classify /score /v1/score /rerank /v1/rerank /v2/rerank /v2/embed /generative_scoring
    /invocations /generate /inference/v1/generate /v1/messages /v1/messages/count_tokens /v1/realtime
    /v1/audio/transcriptions /v1/audio/translations /v1/audio/speech /v1/images/generations
    /v1/chat/completions/render /v1/chat/completions/batch /v1/completions/render
    /v1/responses/resp_1 /v1/responses/resp_1/cancel /v1/responses/resp_1/input_items /v1/responses/compact
    /v1/load_lora_adapter /v1/unload_lora_adapter /v1/files /v1/batches /v1/conversations /v1/fine_tuning/jobs
    /sleep /wake_up /is_sleeping /pause /resume /is_paused /abort_requests
    /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /collective_rpc
    /start_profile /stop_profile /scale_elastic_ep /is_scaling_elastic_ep
    /init_weight_transfer_engine /update_weights /get_world_size
""".split()

asked: list[tuple[str, str, bytes]] = []


async def open_engine(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything, and remembers all but health checks."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    if scope["path"] != "/health" or body:
        asked.append((scope["method"], scope["path"], body))
    await send_json(send, 200, b'{"object": "open"}')


FLEET = {
    "all": model("all", "region", REGION_TARGET, api=list(APIS)),
    **{api: model(api, "cluster", api=[api]) for api in APIS},
}
BED = {"values": catalogue(FLEET, **QUICK), "apps": dict.fromkeys(FLEET, open_engine)}


@pytest.fixture(autouse=True)
def _forget(bed: Bed) -> Iterator[None]:
    asked.clear()
    yield


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", FLEET)
def test_a_model_serves_its_own_apis(bed: Bed, client: Client, name: str, api: str) -> None:
    reply = client.ask(APIS[api], chat_body(name, input="text", prompt="text"))
    if name in ("all", api):
        assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
        assert [(method, path) for method, path, _ in asked] == [("POST", APIS[api])]
    else:
        assert reply.status == 404 and asked == [], str(reply)
        assert openai_error(reply)["type"] == "not_found_error"


@pytest.mark.parametrize("path", CLOSED)
def test_nothing_else_of_an_engine_can_be_reached(bed: Bed, client: Client, path: str) -> None:
    """Bare, with the model in the body, and in the form that has the model in the path."""
    ids = []
    for method in ("GET", "POST", "PUT", "DELETE"):
        for where in (path, f"/all{path}", f"/chat{path}"):
            # A body that named another model than the path would be refused for that.
            by_path = re.match("/([^/]+)/v1/", where)
            named = chat_body(by_path[1] if by_path else "all")
            for body in (None, named) if method == "POST" else (None,):
                reply = client.ask(where, body, method=method)
                # Below /v1/ a body is read first, and one that is absent names no model.
                unread = reply.status == 400 and method == "POST" and body is None and "/v1/" in where
                assert reply.status == 404 or unread, f"{method} {where}: {reply}"
                openai_error(reply)
                ids.append((reply.request_id, reply.status))
    assert asked == [] and bed.bedrock.calls == []
    lines: dict[str, Any] = {}

    def written() -> bool:
        lines.update({line["request_id"]: line for line in bed.router.audit()})
        return all(request_id in lines for request_id, _ in ids)

    wait_until(written, "an audit line for each", every=0.1)
    assert [lines[request_id]["status"] for request_id, _ in ids] == [status for _, status in ids]
    assert {lines[request_id]["upstream"] for request_id, _ in ids} == {None}
    routes = {lines[request_id]["route"] for request_id, _ in ids}
    assert routes <= {"unknown-path", "unknown-model", "refused", "all/not-served", "chat/not-served"}, routes


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("api", APIS)
def test_an_api_takes_posts_alone(bed: Bed, client: Client, api: str, method: str) -> None:
    for path in (APIS[api], f"/all{APIS[api]}"):
        assert client.ask(path, method=method).status == 404
    assert asked == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "/v1//chat/completions/../../../health",
        "/v1/chat/completions/../../health",
        "/all/v1/../health",
        "/all/v1/%2e%2e/health",
        "/all/v1/..%2fhealth",
        "/all/v1/chat/completions%2f..%2f..%2f..%2fhealth",
        "/v1/chat/completions;/health",
        "/v1/chat/completions%00",
        "/V1/chat/completions",
        "//health",
        "/all//health",
        "/all/all/v1/chat/completions",
    ],
)
def test_no_way_of_writing_a_path_leads_further(bed: Bed, path: str) -> None:
    body = json.dumps(chat_body("all")).encode()
    headers = f"host: plane\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    head = f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n"
    status, _, _ = raw_request(bed.url, head.encode() + body)
    assert status in (400, 404), status
    assert asked == []


STORED = [
    {"previous_response_id": "resp_1"},
    {"background": True},
    {"background": "yes"},
    {"background": 1},
    {"conversation": "conv_1"},
    {"conversation": {"id": "conv_1"}},
]


@pytest.mark.parametrize("body", STORED, ids=json.dumps)
def test_what_needs_a_stored_response_is_refused_with_the_reason(client: Client, body: dict[str, Any]) -> None:
    for path, name in (("/v1/responses", {"model": "responses"}), ("/responses/v1/responses", {})):
        reply = client.ask(path, {**name, "input": "hello", **body})
        assert reply.status == 400, str(reply)
        assert openai_error(reply)["message"] == (
            "The request was refused: `previous_response_id`, `conversation` and `background` need a stored response, "
            "and nothing is stored here."
        )
    assert asked == []


@pytest.mark.parametrize(
    "body",
    [{}, {"store": True}, {"store": False}, {"previous_response_id": None, "conversation": None, "background": False}],
    ids=json.dumps,
)
def test_a_response_that_needs_nothing_stored_is_served(client: Client, body: dict[str, Any]) -> None:
    assert client.ask("/v1/responses", {"model": "responses", "input": "hello", **body}).status == 200
    assert len(asked) == 1


@pytest.mark.parametrize("body", STORED, ids=json.dumps)
def test_the_same_keys_mean_nothing_in_a_chat(client: Client, body: dict[str, Any]) -> None:
    assert client.ask(APIS["chat"], {**chat_body("chat"), **body}).status == 200
