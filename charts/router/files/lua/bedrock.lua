-- Upstream filter of a Bedrock cluster, between header_mutation and aws_request_signing: rewrites a chat completion for
-- Bedrock, lets nothing out that is not listed here, and reads the usage of the reply. It is told by request headers:
--   x-plane-target       the Bedrock model id
--   x-plane-authority    the Bedrock host (header_mutation itself may not set :authority)
--   x-plane-target-keys  further body keys that this target takes, comma-separated (optional)
-- Before a prompt leaves, a line of type `bedrock` is written (lines.lua). Where that fails it does not leave: 500.
-- Reply headers: x-plane-prompt-tokens, x-plane-completion-tokens, x-plane-cached-tokens (of non-streamed replies).
--
-- Body keys that leave: those that AWS documents for its OpenAI models (model-parameters-openai: messages,
-- max_completion_tokens, stop, temperature, top_p) and those that OpenAI lists for Bedrock (tools, structured output,
-- reasoning effort). frequency_penalty is answered with 400 there, presence_penalty, n, seed, logit_bias and logprobs
-- are documented by neither, and `user` names a person: a target that takes one says so in x-plane-target-keys.
local ALLOWED = {
  "messages", "max_completion_tokens", "max_tokens", "temperature", "top_p", "stop", "stream", "tools", "tool_choice",
  "parallel_tool_calls", "response_format", "reasoning_effort",
}
local PATH = "/openai/v1/chat/completions"
local USER_AGENT = "inference-plane"
local KEPT_HEADERS = {
  [":method"] = true, [":path"] = true, [":authority"] = true, [":scheme"] = true,
  ["content-type"] = true, accept = true, ["content-length"] = true, ["user-agent"] = true,
  ["x-request-id"] = true,  -- made by the router, never the client's; the audit line and the reply need it
}
-- What an engine needs of the request as it came, should a try of the fleet follow: restore.lua.
local RESTORED = {":path", ":authority", "content-length", "x-plane-stream", "x-plane-model"}
local OWN_KEYS = {model = true, stream_options = true}  -- written here, never copied
local REPLY_HEADERS = {prompt_tokens = "x-plane-prompt-tokens", completion_tokens = "x-plane-completion-tokens"}

local function allowed_keys(more)
  local allowed = {}
  for _, key in ipairs(ALLOWED) do allowed[key] = true end
  for key in string.gmatch(more or "", "[^, ]+") do allowed[key] = true end
  return allowed
end

-- The body for Bedrock, values copied byte for byte; nil and a key of REFUSALS where `text` cannot be read for certain.
local function rewrite(text, target, allowed)
  local list, found = members(text)
  if not list then return nil, found end
  local parts, count = {'{"model":"' .. target .. '"'}, 1
  for _, member in ipairs(list) do
    if allowed[member.key] and not OWN_KEYS[member.key] then
      count = count + 1
      parts[count] = '"' .. member.key .. '":' .. value(text, member)
    end
  end
  if value(text, found.stream) == "true" then parts[count + 1] = '"stream_options":{"include_usage":true}' end
  return table.concat(parts, ",") .. "}"
end

-- Header names are collected first: Envoy forbids to change a header map while it is iterated.
local function remove_headers(headers, unwanted)
  local names = {}
  for name in pairs(headers) do
    if unwanted(name) then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do headers:remove(name) end
end

local function refuse(h, status, kind, message)
  local body = string.format('{"error":{"message":"%s","type":"%s","param":null,"code":%s}}', message, kind, status)
  h:respond({[":status"] = status, ["content-type"] = "application/json", ["x-plane-refused"] = message}, body)
end

local function keep(h, headers)
  local metadata = h:streamInfo():dynamicMetadata()
  for _, name in ipairs(RESTORED) do
    local original = headers:get(name)
    if original then metadata:set("bedrock", name, original) end
  end
end

-- Prepares the request; returns a key of REFUSALS where its body cannot be read.
local function prepare(h)
  local headers = h:headers()
  local target, more = headers:get("x-plane-target"), headers:get("x-plane-target-keys")
  local authority = headers:get("x-plane-authority")
  assert(target and find(target, "^%w[%w._:/-]*$"), "x-plane-target is missing or not a model id")
  assert(authority and find(authority, "^%w[%w.:-]*$"), "x-plane-authority is missing or not a host")
  local body = h:body()
  if not body then return "no_body" end
  local text, reason = rewrite(body:getBytes(0, body:length()), target, allowed_keys(more))
  if not text then return reason end
  keep(h, h:headers())  -- before setBytes, which changes content-length
  local length = body:setBytes(text)
  headers = h:headers()  -- Envoy: a header object does not outlive the wait for a body
  assert(write_line(h, "bedrock", headers:get("x-request-id"), string.format(
    '"model":%s,"model_version":%s,"backend":"bedrock","attempt":%s,"request_bytes":%d',
    quoted(headers:get("x-plane-model")), quoted(target), headers:get("x-envoy-attempt-count") or "null", length)),
    "its audit line cannot be written")
  remove_headers(headers, function(name) return not KEPT_HEADERS[name] end)
  headers:replace(":path", PATH)
  headers:replace(":authority", authority)
  headers:replace("user-agent", USER_AGENT)
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(length))
end

function envoy_on_request(h)
  -- Envoy goes on with the unchanged request when a script fails, and the next filter would sign it.
  local ok, result = pcall(prepare, h)
  if not ok then
    h:logErr("bedrock.lua: request not sent: " .. tostring(result))
    refuse(h, "500", "server_error", "the router could not prepare the request for the fallback")
  elseif result then
    refuse(h, "400", "invalid_request_error", REFUSALS[result])
  end
end

-- A count of tokens, or nil for anything but a plain integer.
local function tokens(text, member)
  return match(value(text, member) or "", "^%d+$")
end

local function usage_headers(text)
  local counts = {}
  local list, reply = members(text)
  local usage = list and value(text, reply.usage)
  local ok, found = members(usage or "")
  if not ok then return counts end
  for key, header in pairs(REPLY_HEADERS) do counts[header] = tokens(usage, found[key]) end
  local details = value(usage, found.prompt_tokens_details) or ""
  local detailed, detail = members(details)
  if detailed then counts["x-plane-cached-tokens"] = tokens(details, detail.cached_tokens) end
  return counts
end

function envoy_on_response(h)
  local headers = h:headers()
  remove_headers(headers, function(name) return sub(name, 1, 8) == "x-plane-" end)
  local kind = headers:get("content-type") or ""
  if headers:get(":status") ~= "200" or not find(kind, "^application/json") then return end
  local body = h:body()
  if not body then return end
  local counts = usage_headers(body:getBytes(0, body:length()))
  headers = h:headers()
  for name, count in pairs(counts) do headers:replace(name, count) end
end
