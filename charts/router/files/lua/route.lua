-- Downstream filter: says in internal headers which model a request is for, whether it streams, or why it is refused.
--   x-plane-model    the model; absent where the request names none or is refused
--   x-plane-stream   `usage`: a stream whose client asked for its usage; `plain`: any other stream
--   x-plane-refused  one message of REFUSALS, for a 400
--   x-residency      the tighter of the client's and its token's; unknown, malformed or repeated, either is tightest
-- Before a prompt goes on, its start line is written (lines.lua). Where that fails it goes nowhere: 503.
-- The path form /<model>/v1/... is rewritten to /v1/... and needs no `model` in the body. The filter context of the
-- routes says as name/NAME of which model that is a further name.
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

-- The model of a name, which may be one of its further names.
local function meant(context, name)
  return context:get("name/" .. name) or name
end

-- Model, kind of stream, nil and the members of a request body, or nil, nil and a key of REFUSALS. `by_path`: the model
-- of the path form, whose body may name none (an engine takes null for that) and no other one: of the two one may be a
-- model whose prompts stay, which Amazon Bedrock would never notice. `context`: the filter context, needed with `by_path`.
local function read_body(text, by_path, context)
  local list, found = members(text, UNIQUE)
  if not list then return nil, nil, found end
  local model = value(text, found.model)
  if model and not (by_path and model == "null") then
    model = match(model, '^"(.*)"$')
    if not model or not is_model(model) then return nil, nil, "model_form" end
    if by_path and meant(context, model) ~= meant(context, by_path) then return nil, nil, "two_models" end
  elseif not by_path then
    return nil, nil, "model_missing"
  end
  local stream, reason = stream_kind(text, found)
  if stream == nil then return nil, nil, reason end
  return by_path or model, stream, nil, found
end

-- A key of REFUSALS for a body of /v1/responses that needs what another request left in one engine; nil for any other.
-- A flag that is no literal counts, as engines may take it for true.
local function stored(text, found)
  for _, name in ipairs({"previous_response_id", "conversation"}) do
    if (value(text, found[name]) or "null") ~= "null" then return "stored" end
  end
  return flag(text, found.background) ~= false and "stored" or nil
end

-- The tighter of two residencies, either of which may be absent; nil where both are.
local function tighter(one, other)
  one, other = one and (RESIDENCIES[one] and one or TIGHTEST), other and (RESIDENCIES[other] and other or TIGHTEST)
  if not (one and other) then return one or other end
  return RESIDENCIES[one] < RESIDENCIES[other] and one or other
end

-- Whether the start line is written: who asks for what with how many bytes, and how far the prompt may travel by the
-- caller's own words.
local function write_start(h, request_id, caller, model, residency, bytes)
  return write_line(
    h, "start", request_id,
    '"team":' .. quoted(caller.team) .. ',"cost_center":' .. quoted(caller.cost_center)
    .. ',"subject":' .. quoted(caller.subject) .. ',"requested_model":' .. quoted(model)
    .. ',"requested_residency":' .. quoted(residency) .. ',"request_bytes":' .. bytes)
end

-- Says in metadata which budgets of the caller's team a request is charged to, and how much at admission: an estimate
-- of its prompt, for a body of so many bytes. Nothing where the team has no budget that this model counts for.
--   inference-plane: budget_team, budget_model  the keys of the budgets; absent where there is none
--   inference-plane: budget_estimate            in tokens
--   inference-plane: unlimited                  the limit of a charge, which is no question
local function charge(h, caller, model, bytes)
  local budget = caller and caller.budget
  local of_model = budget and budget.models and budget.models[model]
  if not budget or not (budget.whole or of_model) then return end
  local metadata = h:streamInfo():dynamicMetadata()
  if budget.whole then metadata:set("inference-plane", "budget_team", caller.team) end
  if of_model then metadata:set("inference-plane", "budget_model", of_model) end
  metadata:set("inference-plane", "budget_estimate", math.ceil(bytes / budget.bytes_per_token))
  metadata:set("inference-plane", "unlimited", {requests_per_unit = 4294967295, unit = "MINUTE"})
end

function envoy_on_request(h)
  local headers = h:headers()
  local caller = h:streamInfo():dynamicMetadata():get("inference-plane")  -- of identity.lua
  local residency = tighter(headers:get("x-residency"), caller and caller.token_residency)
  if residency then headers:replace("x-residency", residency) end
  local request_id = headers:get("x-request-id")
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
      local text, found = body:getBytes(0, body:length()), nil
      model, stream, reason, found = read_body(text, by_path, by_path and h:filterContext())
      if not reason and find(path, "^/v1/responses") then reason = stored(text, found) end
      if not reason then
        if not write_start(h, request_id, caller or {}, model, residency, body:length()) then
          h:headers():replace("x-plane-refused", "the router cannot write its audit log")
          return h:respond({[":status"] = "503"})
        end
        charge(h, caller, model, body:length())
        mark_affinity(h, model, text, found)
      end
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
