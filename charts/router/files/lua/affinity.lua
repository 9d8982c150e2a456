-- Which engine of its fleet a request had better meet, as a number that Envoy hashes: the same for requests of one
-- session, or for prompts that begin alike. It goes into metadata, never into a header: an engine, Amazon Bedrock and
-- the audit line see nothing of it, and no text of a prompt is kept. The chart puts this text before route.lua.
local MULTIPLIER, MODULUS = 1000003, 4294967291  -- the product and four bytes more stay below 2^53, exact in a double
local KEY_BYTES = 256  -- of a session's name
local BEGINNINGS = {"instructions", "messages", "prompt", "input"}  -- as a prompt begins, whichever API it is of

-- A number below 2^32 of a text.
local function digest(text)
  local hash, i = #text, 1
  while i + 3 <= #text do
    local a, b, c, d = byte(text, i, i + 3)
    hash = (hash * MULTIPLIER + a + b * 256 + c * 65536 + d * 16777216) % MODULUS
    i = i + 4
  end
  for rest = i, #text do hash = (hash * MULTIPLIER + byte(text, rest)) % MODULUS end
  return string.format("%.0f", hash)
end

-- A prompt's beginning: `limit` bytes at most, and no more than the first message of a user, so that the later turns of
-- a conversation begin as the first one does.
local function beginning(text, member, limit)
  local head = sub(text, member.first, math.min(member.last, member.first + limit - 1))
  if byte(head, 1) ~= OPEN_LIST then return head end
  local i = skip_blanks(head, 2)
  while byte(head, i) == OPEN_OBJECT do
    local close = container_end(head, i)
    if not close then return head end
    if find(sub(head, i, close), '"role"%s*:%s*"user"') then return sub(head, 1, close) end
    i = skip_blanks(head, close + 1)
    if byte(head, i) == COMMA then i = skip_blanks(head, i + 1) end
  end
  return head
end

-- The session that a request names, by the header x-session-id or OpenAI's `prompt_cache_key`; nil where it names none.
local function session_key(headers, text, found)
  local name = headers:get("x-session-id") or match(value(text, found.prompt_cache_key) or "", '^"(.+)"$')
  return name and name ~= "" and digest(sub(name, 1, KEY_BYTES)) or nil
end

-- How a prompt begins; nil for a body without one.
local function prefix_key(text, found, limit)
  local parts = {}
  for _, name in ipairs(BEGINNINGS) do
    local member = found[name]
    if member then parts[#parts + 1] = digest(beginning(text, member, limit)) end
  end
  return #parts > 0 and table.concat(parts, "-") or nil
end

-- Says in metadata (inference-plane: affinity) what Envoy hashes, where the routes say that the model wants it.
local function mark_affinity(h, model, text, found)
  local context = h:filterContext()
  local kind, key = context:get("affinity/" .. model), nil
  if kind == "session" then
    key = session_key(h:headers(), text, found)
  elseif kind == "prefix" then
    key = prefix_key(text, found, context:get("prefix_bytes"))
  end
  if key then h:streamInfo():dynamicMetadata():set("inference-plane", "affinity", key) end
end
