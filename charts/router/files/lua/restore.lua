-- Upstream filter of a fleet, where a route asked Amazon Bedrock first: makes the request what it was. Tries share one
-- map of headers, in which bedrock.lua and the signature have left theirs; the body is the client's own on each try.
-- What bedrock.lua kept in metadata comes back; of what was signed nothing reaches an engine.
local SIGNED = {authorization = true}

function envoy_on_request(h)
  local kept = h:streamInfo():dynamicMetadata():get("bedrock")
  if not kept then return end  -- Amazon Bedrock was not asked
  local headers, names = h:headers(), {}
  for name in pairs(headers) do
    if SIGNED[name] or string.sub(name, 1, 6) == "x-amz-" then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do headers:remove(name) end
  for name, value in pairs(kept) do headers:replace(name, value) end
end
