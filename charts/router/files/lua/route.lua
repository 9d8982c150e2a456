-- Downstream filter: says in internal headers which model a request is for, whether it streams, or why it is refused.
--   x-plane-model    the model; absent where the request names none or is refused
--   x-plane-stream   `usage`: a stream whose client asked for its usage; `plain`: any other stream
--   x-plane-refused  one message of REFUSALS, for a 400
--   x-residency      the tighter of the client's and its token's; unknown, malformed or repeated, either is tightest
-- The path form /<model>/v1/... is rewritten to /v1/... and needs no `model` in the body.
local UNIQUE = {model = true, stream = true, stream_options = true}
local UNIQUE_OPTIONS = {include_usage = true}
local RESIDENCIES, TIGHTEST = {cluster = 1, region = 2, geography = 3, anywhere = 4}, "cluster"
local FLAGS = {["true"] = true, ["false"] = false, null = false}

-- A catalogue name, as in the path form: a DNS label of at most 40 characters.
local function is_label(name)
  return #name <= 40 and name ~= "v1" and find(name, "^[a-z0-9][a-z0-9-]*$") and byte(name, -1) ~= 45
end

-- What a `model` may be anywhere else: also names such as org/name:tag.
local function is_model(name)
  return #name <= 128 and find(name, "^%w[%w._:/-]*$")
end

-- true or false for the literals (null and an absent member are false), nil for anything else: engines that take
-- "yes" or 1 for true would otherwise stream where the router sees none.
local function flag(text, member)
  if not member then return false end
  return FLAGS[value(text, member)]
end

-- `usage`, `plain` or false for the object `text` with the members `by_key`; nil and a key of REFUSALS.
local function stream_kind(text, by_key)
  local stream = flag(text, by_key.stream)
  if stream == nil then return nil, "stream_form" end
  if not stream then return false end
  local options = value(text, by_key.stream_options)
  if not options or options == "null" then return "plain" end
  local list, found = members(options, UNIQUE_OPTIONS)
  if not list then
    return nil, (found == "not_object" or found == "text_after") and "stream_options_form" or found
  end
  local usage = flag(options, found.include_usage)
  if usage == nil then return nil, "include_usage_form" end
  return usage and "usage" or "plain"
end

-- Model and kind of stream of a request body, or nil, nil and a key of REFUSALS. `by_path`: the model of the path form,
-- whose bodies are scanned too: a search for "stream" first costs more than the scan that it could spare.
local function read_body(text, by_path)
  local list, found = members(text, UNIQUE)
  if not list then return nil, nil, found end
  local model = by_path
  if not model then
    if not found.model then return nil, nil, "model_missing" end
    model = match(value(text, found.model), '^"(.*)"$')
    if not model or not is_model(model) then return nil, nil, "model_form" end
  end
  local stream, reason = stream_kind(text, found)
  if stream == nil then return nil, nil, reason end
  return model, stream
end

-- The tighter of two residencies, either of which may be absent; nil where both are.
local function tighter(one, other)
  one, other = one and (RESIDENCIES[one] and one or TIGHTEST), other and (RESIDENCIES[other] and other or TIGHTEST)
  if not (one and other) then return one or other end
  return RESIDENCIES[one] < RESIDENCIES[other] and one or other
end

function envoy_on_request(h)
  local headers = h:headers()
  local caller = h:streamInfo():dynamicMetadata():get("inference-plane")  -- of identity.lua
  local residency = tighter(headers:get("x-residency"), caller and caller.token_residency)
  if residency then headers:replace("x-residency", residency) end
  local path, method = headers:get(":path") or "", headers:get(":method")
  local by_path, rest = match(path, "^/([^/?]+)(/v1/.*)$")
  if by_path and is_label(by_path) then
    path = rest
    headers:replace(":path", path)
  else
    by_path = nil
  end
  local model, stream, reason = by_path, false, nil
  if method == "POST" and sub(path, 1, 4) == "/v1/" then
    local encoding = headers:get("content-encoding")
    local body = h:body()
    if not body or body:length() == 0 then
      reason = "no_body"
    elseif encoding and string.lower(encoding) ~= "identity" then
      reason = "compressed"
    else
      model, stream, reason = read_body(body:getBytes(0, body:length()), by_path)
    end
  elseif method == "GET" and not by_path then
    local id = match(path, "^/v1/models/([^?]+)")
    id = id and string.gsub(id, "%%(%x%x)", function(code) return string.char(tonumber(code, 16)) end)
    if id and is_model(id) then model = id end
  end
  headers = h:headers()  -- Envoy: a header object does not outlive the wait for a body
  if reason then
    headers:replace("x-plane-refused", REFUSALS[reason])
  elseif model then
    headers:replace("x-plane-model", model)
  end
  if stream and not reason then headers:replace("x-plane-stream", stream) end
  if reason or model or by_path or caller then h:clearRouteCache() end
end
