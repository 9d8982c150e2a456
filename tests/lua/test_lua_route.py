"""route.lua: model, kind of stream or a refusal, from path and body."""

from __future__ import annotations

import json

import pytest
from lua_harness import refusals

WORDS = refusals()


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model":"a"}', "a"),
        ('\r\n\t {"model" :\n"a" , "x":1}\n', "a"),
        ('{"x":{"model":"b"},"y":[{"model":"b"}],"model":"a"}', "a"),
        ('{"messages":[{"content":"say \\"model\\":\\"evil\\""}],"model":"a"}', "a"),
        ('{"a":"\\\\","model":"a"}', "a"),
        ('{"a":"\\\\\\"","model":"a"}', "a"),
        ('{"a":"model","b":["model","z"],"model":"org/Name_1.5:7b-q4"}', "org/Name_1.5:7b-q4"),
        ('{"a":NaN,"b":-1.5e+9,"c":null,"model":"a"}', "a"),
        ('{"x":1,"x":2,"model":"a"}', "a"),
        ('{"a":' + "[" * 126 + "]" * 126 + ',"model":"a"}', "a"),
    ],
)
def test_the_one_top_level_model_is_read(route, body, model):
    result = route(body=body.encode())
    assert result.headers.get("x-plane-model") == model
    assert "x-plane-refused" not in result.headers
    assert result.cleared


def test_invalid_utf8_in_another_string_passes_on(route):
    assert route(body=b'{"a":"\xff\xc3","model":"a"}').headers["x-plane-model"] == "a"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "no_body"),
        (b"", "no_body"),
        (b"  ", "not_object"),
        (b"nojson", "not_object"),
        (b'[{"model":"a"}]', "not_object"),
        (b'\x00{"model":"a"}', "not_object"),
        (b'\xef\xbb\xbf{"model":"a"}', "not_object"),
        ('{"model":"a"}'.encode("utf-16-le"), "not_object"),
        (b'{"model":"a"', "not_object"),
        (b'{"model":"a', "not_object"),
        (b'{"a":[1,2},"model":"a"}', "not_object"),
        (b'{"a":{]},"model":"a"}', "not_object"),
        (b'{"model":"a"]', "not_object"),
        (b'{"k":"model":"x"}', "not_object"),
        (b'{"model","a"}', "not_object"),
        (b'{"a" "b":1,"model":"x"}', "not_object"),
        (b'{"a":"b" "model":"x"}', "not_object"),
        (b'{"model":}', "not_object"),
        (b'{"model":"a",}', "not_object"),
        (b'{,"model":"a"}', "not_object"),
        (b'{"a":1 2,"model":"a"}', "not_object"),
        (b'{"a":[/*"]*/],"model":"a"}', "not_object"),
        (b"{'model':'a'}", "not_object"),
        (b'{"model":"a"}{"model":"b"}', "text_after"),
        (b'{"model":"a"} trailing', "text_after"),
        (b'{"model":"a"}\x00', "text_after"),
        (b'{"a":' + b"[" * 128 + b"]" * 128 + b',"model":"a"}', "too_deep"),
        (b'{"model":"a"' + b"".join(b',"k%d":1' % i for i in range(256)) + b"}", "too_many"),
        (b'{"\\u006dodel":"b","model":"a"}', "escaped_key"),
        (b'{"a\\n":1,"model":"a"}', "escaped_key"),
        (b'{"model":"a","model":"a"}', "model_twice"),
        (b'{"stream":true,"model":"a","stream":false}', "stream_twice"),
        (b'{"stream_options":null,"model":"a","stream_options":{}}', "stream_options_twice"),
        (b"{}", "model_missing"),
        (b'{"a":"model","b":1}', "model_missing"),
        (b'{"a":{"model":1}}', "model_missing"),
        (b'{"model":null}', "model_form"),
        (b'{"model":{"a":1}}', "model_form"),
        (b'{"model":"a\\u0062"}', "model_form"),
        (b'{"model":""}', "model_form"),
        (b'{"model":"a b"}', "model_form"),
        (b'{"model":"a\xc3\xa9"}', "model_form"),
        (b'{"model":"' + b"a" * 129 + b'"}', "model_form"),
        (b'{"model":"a","stream":1}', "stream_form"),
        (b'{"model":"a","stream":"true"}', "stream_form"),
        (b'{"model":"a","stream":true,"stream_options":[]}', "stream_options_form"),
        (b'{"model":"a","stream":true,"stream_options":{"include_usage":1}}', "include_usage_form"),
        (
            b'{"model":"a","stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
            "include_usage_twice",
        ),
        (b'{"model":"a","stream":true,"stream_options":{"include_us\\u0061ge":true}}', "escaped_key"),
    ],
)
def test_a_body_that_two_readers_could_read_differently_is_refused(route, body, reason):
    headers = route(body=body).headers
    assert headers.get("x-plane-refused") == WORDS[reason]
    assert "x-plane-model" not in headers and "x-plane-stream" not in headers


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ("", None),
        (',"stream":false,"stream_options":{"include_usage":true}', None),
        (',"stream":null', None),
        (',"stream":true', "plain"),
        (',"stream":true,"stream_options":null', "plain"),
        (',"stream":true,"stream_options":{}', "plain"),
        (',"stream":true,"stream_options":{"x":{"include_usage":true},"include_usage":false}', "plain"),
        (', "stream" : true, "stream_options" : { "x":1, "include_usage" : true }', "usage"),
        (',"a":{"stream":true}', None),
        (',"a":"\\"stream\\":true"', None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/a/v1/chat/completions"])
def test_kind_of_stream(route, path, members, kind):
    headers = route(path, f'{{"model":"a"{members}}}'.encode()).headers
    assert headers.get("x-plane-stream") == kind
    assert headers["x-plane-model"] == "a"


@pytest.mark.parametrize(
    ("path", "rewritten", "model"),
    [
        ("/m/v1/chat/completions", "/v1/chat/completions", "m"),
        ("/clinical-summary/v1/completions?x=/v1/&y=1", "/v1/completions?x=/v1/&y=1", "clinical-summary"),
        ("/" + "m" * 40 + "/v1/x", "/v1/x", "m" * 40),
        ("/m/v1/v1/x", "/v1/v1/x", "m"),
        ("/m/v1/models/other", "/v1/models/other", "m"),
    ],
)
def test_the_path_form_names_the_model(route, path, rewritten, model):
    for method, body in (("POST", b'{"model":null}'), ("POST", b"{}"), ("GET", None)):
        result = route(path, body, method)
        assert result.headers[":path"] == rewritten
        assert result.headers["x-plane-model"] == model
        assert "x-plane-refused" not in result.headers
        assert result.cleared


def test_the_body_of_the_path_form_names_the_same_model_or_none(route):
    names = {"name/org/m:7b": "m", "name/m-latest": "m"}
    for path in ("m", "m-latest"):
        for body in (b'{"model":"m"}', b'{"model":"org/m:7b"}', b'{"model":"m-latest"}', b'{"model":null}', b"{}"):
            headers = route(f"/{path}/v1/chat/completions", body, context=names).headers
            assert headers["x-plane-model"] == path and "x-plane-refused" not in headers
        for body in (b'{"model":"other"}', b'{"model":"org/other:7b"}'):
            headers = route(f"/{path}/v1/chat/completions", body, context=names).headers
            assert headers["x-plane-refused"] == WORDS["two_models"] and "x-plane-model" not in headers
    assert "x-plane-refused" not in route("/v1/chat/completions", b'{"model":"other"}', context=names).headers


@pytest.mark.parametrize(
    "path",
    ["/v1/v1/x", "/M/v1/x", "/-m/v1/x", "/m-/v1/x", "/m_1/v1/x", "/a/b/v1/x", "//v1/x", "/m/v2/x", "/m/v1", "/m?/v1/x",
     "/" + "m" * 41 + "/v1/x"],
)  # fmt: skip
def test_other_paths_are_no_path_form(route, path):
    result = route(path, method="GET")
    assert result.headers == {":path": path, ":method": "GET"}
    assert not result.cleared


@pytest.mark.parametrize(
    "body",
    [b'{"stream":1}', b'{"model":1}', b'{"model":"a\\u0062"}', b'{"a":[}', b'{"str\\u0065am":true}',
     '{"stream":true}'.encode("utf-16"), b"[]", None],
)  # fmt: skip
def test_the_path_form_refuses_what_it_cannot_read(route, body):
    headers = route("/m/v1/chat/completions", body).headers
    assert headers["x-plane-refused"] in WORDS.values()
    assert "x-plane-model" not in headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/m/v1/chat/completions"])
def test_compressed_bodies_are_refused(route, path):
    body = b'{"model":"m"}'
    for encoding in ("gzip", "identity, gzip", "BR"):
        headers = route(path, body, headers={"content-encoding": encoding}).headers
        assert headers["x-plane-refused"] == WORDS["compressed"]
    assert "x-plane-refused" not in route(path, body, headers={"content-encoding": "Identity"}).headers


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/m", "m"),
        ("/v1/models/org/name:7b?x=1", "org/name:7b"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models", None),
        ("/v1/models/", None),
        ("/v1/models/a%0d%0ab", None),
        ("/v1/files/m", None),
    ],
)
def test_reading_one_model_needs_no_body(route, path, model):
    result = route(path, method="GET")
    assert result.headers.get("x-plane-model") == model
    assert result.headers[":path"] == path
    assert result.cleared == (model is not None)


@pytest.mark.parametrize(("path", "method"), [("/healthz", "POST"), ("/v1/chat/completions", "PUT"), ("/", "GET")])
def test_other_requests_are_left_alone(route, path, method):
    result = route(path, b'{"model":"a"}', method)
    assert result.headers == {":path": path, ":method": method}


def test_messages_fit_headers_and_json_strings_and_repeat_no_input():
    assert len(set(WORDS.values())) == len(WORDS)
    for message in WORDS.values():
        assert message.isascii() and message.isprintable() and len(message) < 120
        assert json.dumps(message) == f'"{message}"'


@pytest.mark.parametrize(("given", "kept"), [
    ("cluster", "cluster"),
    ("region", "region"),
    ("geography", "geography"),
    ("anywhere", "anywhere"),
    ("", "cluster"),
    ("Anywhere", "cluster"),
    ("anywhere ", "cluster"),
    ("global", "cluster"),
    ("cluster,anywhere", "cluster"),  # as Envoy joins a repeated header
    ("anywhere,anywhere", "cluster"),
])
def test_a_residency_that_is_not_one_known_word_is_the_tightest(route, given, kept):
    assert route(body=b'{"model":"m"}', headers={"x-residency": given}).headers["x-residency"] == kept


def test_no_residency_is_added(route):
    assert "x-residency" not in route(body=b'{"model":"m"}').headers
    assert "x-residency" not in route(body=b'{"model":"m"}', caller={"team": "care"}).headers


WORDS_OF_RESIDENCY = ["cluster", "region", "geography", "anywhere"]


@pytest.mark.parametrize("claimed", [*WORDS_OF_RESIDENCY, "Region", ""])
@pytest.mark.parametrize("given", [None, *WORDS_OF_RESIDENCY, "global"])
def test_the_tighter_of_the_tokens_residency_and_the_headers_is_kept(route, given, claimed):
    headers = {} if given is None else {"x-residency": given}
    kept = route(body=b'{"model":"m"}', headers=headers, caller={"token_residency": claimed}).headers["x-residency"]
    asked = [word if word in WORDS_OF_RESIDENCY else "cluster" for word in (given, claimed) if word is not None]
    assert kept == min(asked, key=WORDS_OF_RESIDENCY.index)


# --- token budgets ----------------------------------------------------------------------------------------------------

CARE = {"team": "care", "budget": {"bytes_per_token": 4, "whole": True, "models": {"a": "a", "org/a": "a"}}}
UNLIMITED = {"unlimited": {"requests_per_unit": 4294967295, "unit": "MINUTE"}}


@pytest.mark.parametrize(
    ("caller", "model", "keys"),
    [
        (CARE, "a", {"budget_team": "care", "budget_model": "a"}),
        (CARE, "org/a", {"budget_team": "care", "budget_model": "a"}),
        (CARE, "b", {"budget_team": "care"}),
        ({"team": "care", "budget": {"bytes_per_token": 4, "models": {"a": "a"}}}, "a", {"budget_model": "a"}),
        ({"team": "care", "budget": {"bytes_per_token": 4, "whole": True}}, "a", {"budget_team": "care"}),
    ],
)
def test_a_request_is_charged_to_the_budgets_of_its_team(route, caller, model, keys):
    body = json.dumps({"model": model, "x": "y" * 31}).encode()
    said = route(body=body, caller=caller).marked
    assert said == keys | UNLIMITED | {"budget_estimate": -(-len(body) // 4)}


@pytest.mark.parametrize(
    ("caller", "body"),
    [
        (None, b'{"model":"a"}'),
        ({"team": "care"}, b'{"model":"a"}'),
        ({"team": "care", "budget": {"bytes_per_token": 4, "models": {"a": "a"}}}, b'{"model":"b"}'),
        (CARE, b'{"model":"a","model":"a"}'),
        (CARE, b"{}"),
    ],
)
def test_without_a_budget_or_a_model_nothing_is_charged(route, caller, body):
    assert route(body=body, caller=caller).marked == {}


def test_a_look_at_the_catalogue_is_charged_nothing(route):
    assert route(path="/v1/models/a", method="GET", caller=CARE).marked == {}
