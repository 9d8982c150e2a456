"""The router's two Lua filters, loaded once a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lua_harness import Result, load


@pytest.fixture(scope="session")
def route() -> Callable[..., Result]:
    """route.lua's request side as (path, body, method, headers, caller, context) -> Result."""
    call = load("route")

    def request(
        path: str = "/v1/chat/completions",
        body: bytes | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        caller: dict[str, object] | None = None,
        context: dict[str, str | int] | None = None,
    ) -> Result:
        return call("envoy_on_request", {":path": path, ":method": method, **(headers or {})}, body, caller, context)

    return request


@pytest.fixture(scope="session")
def bedrock() -> Callable[..., Result]:
    """bedrock.lua as (entry point, headers, body) -> Result."""
    return load("bedrock")
