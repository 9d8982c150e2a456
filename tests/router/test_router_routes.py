"""Which request reaches which model, and what becomes of one that names none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from router_harness import CHAT, MODELS, Audit, Client, chat_body, helm_test, marker, openai_error, raw_request

from inference_plane.onehost.bed import Bed

LIMIT = 16 * 1024 * 1024


def _upstream_requests(bed: Bed) -> dict[str, int]:
    return bed.router.stats(
        [f"cluster.fleet/{name}.upstream_rq_total" for name in bed.engines]
        + [f"cluster.bedrock/{name}.upstream_rq_total" for name in bed.engines]
    )


def _received(bed: Bed, model: str) -> list[Any]:
    return [request for engine in bed.engines[model] for request in engine.requests]


@pytest.mark.parametrize("model", ["summary", "intake", "letters", "triage"])
def test_the_model_in_the_body_decides_who_answers(bed: Bed, client: Client, model: str) -> None:
    reply = client.chat(model)
    assert (reply.status, reply.backend, reply.version) == (200, "fleet", "v7"), str(reply)
    assert reply.json["model"] == model
    assert {name: len(_received(bed, name)) for name in ("summary", "intake", "letters", "triage")} == {
        name: int(name == model) for name in ("summary", "intake", "letters", "triage")
    }


def test_the_path_form_needs_no_model_in_the_body(bed: Bed, client: Client) -> None:
    reply = client.ask("/intake/v1/chat/completions", chat_body(None))
    assert reply.status == 200 and reply.json["model"] == "intake", str(reply)
    assert [request.path for request in _received(bed, "intake")] == [CHAT]


@pytest.mark.parametrize(("path", "body"), [("triage", "intake"), ("intake", "triage"), ("triage", "nobody")])
def test_a_path_and_a_body_that_name_two_models_are_refused(
    bed: Bed, client: Client, audit: Audit, path: str, body: str
) -> None:
    """Else a prompt for a model whose prompts stay could leave under the name of one whose prompts may."""
    bed.scale("triage", 0)
    bed.wait_for_engines({"triage": 0})
    prompt = marker()
    reply = client.ask(f"/{path}/v1/chat/completions", chat_body(body, prompt))
    assert openai_error(reply)["message"] == "The request was refused: the path and the body name two models."
    assert (audit.of(reply)["status"], audit.of(reply)["route"]) == (400, "refused")
    assert bed.bedrock.seen(prompt) == 0 and not any(_received(bed, name) for name in ("triage", "intake"))


@pytest.mark.parametrize("alias", ["summary", *MODELS["summary"]["servedNames"]])
def test_the_body_of_the_path_form_may_have_any_name_of_the_model(bed: Bed, client: Client, alias: str) -> None:
    for path in ("summary", "summary-latest"):
        client.ask(f"/{path}/v1/chat/completions", chat_body(alias))
    assert len(_received(bed, "summary")) == 2


@pytest.mark.parametrize("alias", MODELS["summary"]["servedNames"])
def test_a_served_name_reaches_the_models_own_fleet(bed: Bed, client: Client, alias: str) -> None:
    for engine in bed.engines["summary"]:
        engine.surface.name = alias  # a replayed engine knows one name, vLLM all of --served-model-name
    try:
        reply = client.chat(alias)
    finally:
        for engine in bed.engines["summary"]:
            engine.surface.name = "summary"
    assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    assert [request.json["model"] for request in _received(bed, "summary")] == [alias]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "text/plain"])
def test_the_content_type_does_not_hide_the_model(bed: Bed, client: Client, content_type: str) -> None:
    assert client.chat("intake", headers={"content-type": content_type}).status == 200


def test_a_model_after_a_long_prompt_full_of_decoys_is_found(bed: Bed, client: Client) -> None:
    decoy = r'\", "model": "summary", {"model": "summary"} \\'
    text = json.dumps({"messages": [{"role": "user", "content": decoy * 5000, "model": "summary"}], "model": "intake"})
    assert len(text) > 200_000
    reply = client.ask(CHAT, text.encode())
    assert reply.status == 200 and len(_received(bed, "intake")) == 1, str(reply)
    assert _received(bed, "intake")[0].body == text.encode()


def test_a_body_of_three_megabytes_arrives_whole(bed: Bed, client: Client) -> None:
    body = json.dumps(chat_body("intake", "x" * 3_000_000)).encode()
    assert client.ask(CHAT, body).status == 200
    assert [request.body for request in _received(bed, "intake")] == [body]


def test_a_body_beyond_the_limit_is_413(bed: Bed, client: Client, audit: Audit) -> None:
    before = _upstream_requests(bed)
    reply = client.ask(CHAT + "?too-large", chat_body("intake", "x" * LIMIT))
    assert reply.status == 413 and openai_error(reply)["message"] == "The body is larger than 16 MiB."
    assert audit.of(reply)["status"] == 413
    assert _upstream_requests(bed) == before


def test_a_chunked_request_is_routed_like_any_other(bed: Bed, client: Client) -> None:
    body = json.dumps(chat_body("intake", "y" * 100_000)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    reply = client.ask(CHAT, pieces())
    assert reply.status == 200 and [request.body for request in _received(bed, "intake")] == [body], str(reply)


REFUSED = {
    "no model": (b'{"messages":[]}', "the body has no top-level `model`"),
    "the model twice": (b'{"model":"intake","model":"summary"}', "`model` stands twice in the body"),
    "a nested model only": (b'{"metadata":{"model":"intake"}}', "the body has no top-level `model`"),
    "an escaped key": (b'{"\\u006dodel":"intake"}', "a key is written with escapes"),
    "an escaped model": (b'{"model":"int\\u0061ke"}', "`model` must be a string"),
    "a model that is no string": (b'{"model":["intake"]}', "`model` must be a string"),
    "an array": (b'[{"model":"intake"}]', "the body is not one JSON object"),
    "two objects": (b'{"model":"intake"}{"model":"summary"}', "text stands after the body's JSON object"),
    "no JSON": (b"model=intake", "the body is not one JSON object"),
    "half an object": (b'{"model":"intake","messages":[', "the body is not one JSON object"),
    "stream that is no flag": (b'{"model":"intake","stream":"yes"}', "`stream` must be true, false or null"),
    "nothing": (b"", "the request has no body"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_body_that_does_not_name_one_model_is_400(bed: Bed, client: Client, audit: Audit, kind: str) -> None:
    body, reason = REFUSED[kind]
    before = _upstream_requests(bed)
    reply = client.ask(CHAT, body)
    assert reply.status == 400, str(reply)
    error = openai_error(reply)
    assert error["type"] == "invalid_request_error" and reason in error["message"]
    line = audit.of(reply)
    assert (line["status"], line["route"], line["upstream"], line["attempts"]) == (400, "refused", None, 0)
    assert _upstream_requests(bed) == before


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_400(bed: Bed, client: Client, encoding: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-encoding: {encoding}\r\ncontent-length: 18\r\n\r\n".encode()
    status, headers, body = raw_request(bed.url, head + b'{"model":"intake"}')
    assert (status, headers["content-type"]) == (400, "application/json")
    assert "must not be compressed" in json.loads(body)["error"]["message"]
    assert not _received(bed, "intake")


def test_a_model_that_nobody_has_is_404(bed: Bed, client: Client, audit: Audit) -> None:
    reply = client.chat("gpt-5")
    assert reply.status == 404 and openai_error(reply)["message"].startswith("The model `gpt-5` does not exist")
    assert (audit.of(reply)["status"], audit.of(reply)["route"]) == (404, "unknown-model")


def test_the_list_of_models_is_the_catalogue_with_every_served_name(bed: Bed, client: Client) -> None:
    reply = client.ask("/v1/models")
    assert (reply.status, reply.headers["content-type"], reply.json["object"]) == (200, "application/json", "list")
    assert {entry["id"] for entry in reply.json["data"]} == {*MODELS, *MODELS["summary"]["servedNames"]}
    assert all(set(entry) == {"id", "object", "created", "owned_by"} for entry in reply.json["data"])


@pytest.mark.parametrize("name", ["summary", "summary-latest", "org/summary:8b"])
def test_one_model_can_be_looked_up(bed: Bed, client: Client, name: str) -> None:
    reply = client.ask(f"/v1/models/{name}")
    assert (reply.status, reply.headers["content-type"], reply.json["id"]) == (200, "application/json", name)


def test_a_model_without_an_engine_is_still_listed(bed: Bed, client: Client) -> None:
    bed.scale("intake", 0)
    bed.wait_for_engines({"intake": 0})
    assert client.ask("/v1/models/intake").status == 200


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("summary", "/v1/embeddings"),
        ("summary", "/v1/responses"),
        ("embedder", CHAT),
        ("embedder", "/v1/completions"),
        ("cached", "/v1/completions"),
        ("intake", "/v1/score"),
        ("intake", "/v1/load_lora_adapter"),
        ("intake", "/v1/chat/completions/render"),
        ("intake", "/v1/models"),
        ("intake", "/v1/chat/completions/"),
        ("intake", "/v1/CHAT/completions"),
        ("intake", "/v1/chat/completions;x"),
    ],
)
def test_a_path_that_the_models_api_does_not_have_is_404(
    bed: Bed, client: Client, audit: Audit, model: str, path: str
) -> None:
    before = _upstream_requests(bed)
    for reply in (client.ask(path, chat_body(model)), client.ask(f"/{model}{path}", chat_body(None))):
        assert reply.status == 404 and openai_error(reply)["type"] == "not_found_error", str(reply)
        assert audit.of(reply)["route"] == f"{model}/not-served"
    assert _upstream_requests(bed) == before


def test_embeddings_and_completions_are_served_where_the_model_has_them(bed: Bed, client: Client) -> None:
    assert client.ask("/v1/embeddings", {"model": "embedder", "input": "x"}).json["object"] == "list"
    assert client.ask("/v1/completions", {"model": "intake", "prompt": "x"}).json["object"] == "text_completion"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("prefix", ["", "/intake"])
def test_what_an_engine_serves_beside_its_api_cannot_be_reached(
    bed: Bed, client: Client, method: str, prefix: str
) -> None:
    before = _upstream_requests(bed)
    body = None if method in ("GET", "HEAD") else chat_body("intake")
    for path in (
        "/metrics",
        "/health",
        "/ping",
        "/load",
        "/version",
        "/tokenize",
        "/detokenize",
        "/invocations",
        "/docs",
        "/openapi.json",
        "/server_info",
        "/reset_prefix_cache",
        "/sleep",
        "/pause",
        "/scale_elastic_ep",
        "/",
        "/v2/x",
        "/clusters",
        "/stats",
        "/quitquitquit",
        "/ready",
    ):
        reply = client.ask(prefix + path, body, method=method)
        assert reply.status == 404, f"{method} {prefix + path}: {reply}"
        assert method == "HEAD" or openai_error(reply)["type"] == "not_found_error"
    assert _upstream_requests(bed) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("DELETE", CHAT),
        ("PUT", CHAT),
        ("DELETE", "/v1/models/intake"),
        ("POST", "/v1/models/intake"),
        ("POST", "/v1/models"),
        ("PATCH", "/intake" + CHAT),
    ],
)
def test_another_method_than_the_apis_is_404(bed: Bed, client: Client, method: str, path: str) -> None:
    before = _upstream_requests(bed)
    reply = client.ask(path, None if method == "GET" else chat_body("intake"), method=method)
    assert reply.status == 404 and openai_error(reply)["type"] == "not_found_error", str(reply)
    assert _upstream_requests(bed) == before


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../metrics",
        "/v1/chat/completions/../../../metrics",
        "/v1/%2e%2e/metrics",
        "/v1/.%2e/metrics",
        "/v1/%2e%2e%2fmetrics",
        "/v1%2f..%2fmetrics",
        "/v1\\..\\metrics",
        "//metrics",
        "//v1/../metrics",
        "/./metrics",
        "/V1/chat/completions",
        "/v1;/chat/completions",
        "/v1/chat/completions;/../metrics",
        "/intake/v1/../metrics",
        "/intake/../metrics",
        "/intake/v1/..;/metrics",
        "/v1/v1/chat/completions",
        "/intake/intake/v1/chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/chat/completions%00",
        "/v1/%63hat/completions%3f",
        "http://x/metrics",
        "*",
        "/intake/v1/models/../../metrics",
    ],
)
def test_a_crafted_path_reaches_nothing(bed: Bed, target: str) -> None:
    before = _upstream_requests(bed)
    body = json.dumps(chat_body("intake")).encode()
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    status, headers, text = raw_request(bed.url, head.encode() + body)
    assert status in (400, 404) and headers["content-type"] == "application/json", (status, headers, text)
    assert json.loads(text)["error"]["code"] == status
    assert _upstream_requests(bed) == before


@pytest.mark.parametrize(
    "line", ["x_plane_model: summary", "x_residency: anywhere", "content_length: 5", "x-request-id : 1", "x-a:\x00b"]
)
def test_a_header_that_other_software_could_read_differently_is_refused(bed: Bed, line: str) -> None:
    body = json.dumps(chat_body("intake")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{line}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    status, headers, _ = raw_request(bed.url, head + body)
    assert status == 400 and headers["content-type"] == "application/json"
    assert not _received(bed, "intake")


@pytest.mark.parametrize(
    "line", ["content-length: 5\r\ntransfer-encoding: chunked", "content-length: 5\r\ncontent-length: 6"]
)
def test_a_request_with_two_lengths_is_refused(bed: Bed, line: str) -> None:
    status, _, _ = raw_request(bed.url, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{line}\r\n\r\n0\r\n\r\n".encode())
    assert status == 400


def test_every_answer_names_its_request(bed: Bed, client: Client) -> None:
    mine = marker()
    replies = [client.chat(model, headers={"x-request-id": mine}) for model in ("intake", "nobody")]
    assert len({reply.request_id for reply in replies} - {mine}) == 2  # a client cannot choose or repeat an id
    assert [request.headers["x-request-id"] for request in _received(bed, "intake")] == [replies[0].request_id]


def test_the_helm_test_passes_at_a_router_and_nowhere_else(bed: Bed) -> None:
    assert helm_test(bed, bed.url) == 0
    # The other listener answers too, but knows no model.
    assert helm_test(bed, bed.router.status_url) != 0
