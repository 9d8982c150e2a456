"""The router's Lua files in LuaJIT, with a stand-in for Envoy's stream handle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lupa import luajit21

LUA = Path(__file__).resolve().parents[2] / "charts" / "router" / "files" / "lua"

# Envoy's handle as far as the filters use it. Iterating pairs() over it gives (name, value), as Envoy's header maps do,
# and as there a change while iterating is an error, body() ends the life of a header object, respond() ends the script.
HANDLE = rb"""
local RESPONDED = {}
-- What the filters write to stderr, line by line; nothing can be written where `full` is set.
local written = ""
full = false
io = {stderr = {write = function(_, line)
  if full then return nil, "No space left on device" end
  written = written .. line
  return true
end}}
local Body, Headers, Handle = {}, {}, {}
Body.__index, Headers.__index, Handle.__index = Body, Headers, Handle
function Body:length() return #self.text end
function Body:getBytes(from, count) return string.sub(self.text, from + 1, from + count) end
function Body:setBytes(text) self.text = text; return #text end
local function changing(headers)
  if headers.iterating then error("header map can not be modified during iteration") end
end
local function alive(headers) if headers.dead then error("object used outside of proper scope") end end
function Headers:get(name) alive(self); return self.map[name] end
function Headers:replace(name, value)
  alive(self); changing(self); assert(type(value) == "string")
  self.map[name] = value
end
function Headers:remove(name) alive(self); changing(self); self.map[name] = nil end
function Headers.__pairs(self)
  alive(self)
  self.iterating = true
  return function(_, name)
    local key, value = next(self.map, name)
    if key == nil then self.iterating = false end
    return key, value
  end
end
function Handle:headers()
  self.header_map = self.header_map or setmetatable({map = self.map}, Headers)
  return self.header_map
end
function Handle:body()
  if self.header_map then self.header_map.dead, self.header_map = true, nil end
  return self.content
end
-- Metadata of one filter, whose table is given whole.
function Handle:streamInfo() return self end
function Handle:dynamicMetadata()
  return {
    get = function(_, name) return self.metadata[name] end,
    set = function(_, name, key, value)
      local table = name == "inference-plane" and self.marked or self.kept
      table[key] = value
    end,
  }
end
function Handle:filterContext() return {get = function(_, key) return self.context[key] end} end
function Handle:clearRouteCache() self.cleared = true end
function Handle:timestamp() return "1795784400123" end
function Handle:logErr(text) self.logged = text end
function Handle:respond(headers, body) self.reply, self.reply_body = headers, body; error(RESPONDED) end
local plain_pairs, plain_pcall = pairs, pcall
function pairs(value)
  local meta = getmetatable(value)
  if meta and meta.__pairs then return meta.__pairs(value) end
  return plain_pairs(value)
end
function run(name, headers, body, caller, context)
  written = ""
  local handle = setmetatable(
    {map = headers, metadata = {["inference-plane"] = caller}, context = context or {}, marked = {}, kept = {}}, Handle)
  handle.content = body and setmetatable({text = body}, Body) or nil
  local ok, problem = plain_pcall(_G[name], handle)
  if not ok and problem ~= RESPONDED then error(problem, 0) end
  handle.written = written
  return handle
end
"""


@dataclass
class Result:
    """What a filter made of a request or a response."""

    headers: dict[str, str]
    body: bytes | None
    cleared: bool
    reply: dict[str, str] = field(default_factory=dict)
    reply_body: bytes = b""
    logged: str = ""
    written: str = ""
    marked: dict[str, object] = field(default_factory=dict)  # metadata that it set


def source(name: str) -> bytes:
    """The text that Envoy loads for the filter `name`: the shared scanner, the lines, affinity, and the filter in one."""
    files = ["members", "lines", *(["affinity"] if name == "route" else []), name]
    return b"".join((LUA / f"{file}.lua").read_bytes() for file in files)


def load(name: str, before: bytes = b"", after: bytes = b"") -> Callable[..., Result]:
    """A function (entry point, headers, body, what the plane's metadata says of the caller) that runs the filter `name` in a LuaJIT of its own."""
    runtime = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=True)
    runtime.execute(HANDLE)
    runtime.execute(before + source(name) + after)
    run = runtime.globals()[b"run"]

    def text(table: object) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in table.items()} if table is not None else {}

    def table(values: Mapping[str, object]) -> object:
        return runtime.table_from({k.encode(): of_lua(v) for k, v in values.items()})

    def of_lua(value: object) -> object:
        if isinstance(value, Mapping):
            return table(value)
        return value.encode("latin-1") if isinstance(value, str) else value

    def of_python(value: object) -> object:
        if isinstance(value, bytes):
            return value.decode("latin-1")
        return {k.decode(): of_python(v) for k, v in value.items()} if hasattr(value, "items") else value

    def call(
        entry: str,
        headers: dict[str, str],
        body: bytes | None = None,
        caller: Mapping[str, object] | None = None,
        context: dict[str, str | int] | None = None,
    ) -> Result:
        known = {k.encode(): v if isinstance(v, int) else v.encode() for k, v in (context or {}).items()}
        handle = run(
            entry.encode(),
            table(headers),
            body,
            None if caller is None else table(caller),
            runtime.table_from(known),
        )
        content = handle[b"content"]
        return Result(
            headers=text(handle[b"map"]),
            body=content[b"text"] if content is not None else None,
            cleared=bool(handle[b"cleared"]),
            reply=text(handle[b"reply"]),
            reply_body=handle[b"reply_body"] or b"",
            logged=(handle[b"logged"] or b"").decode(),
            written=handle[b"written"].decode("latin-1"),
            marked=of_python(handle[b"marked"]),
        )

    return call


def refusals() -> dict[str, str]:
    """The table of fixed messages at the top of members.lua."""
    runtime = luajit21.LuaRuntime()
    return dict(runtime.execute((LUA / "members.lua").read_text() + "\nreturn REFUSALS").items())
