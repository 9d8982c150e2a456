-- Downstream filter between jwt_authn and rbac: says in metadata who calls, from the claims of a verified token.
--   inference-plane: team, cost_center  of the caller; absent where the token does not name exactly one team
--   inference-plane: budget             which token budgets the team has, for route.lua; absent where it has none
--   inference-plane: no_team            why there is no team, for the 403 of rbac, which lets nobody in without one
--   inference-plane: subject            whom the token is of
--   inference-plane: token_residency    how far the token lets its prompts travel; route.lua heeds it
-- Where the claims are (`claims`) and which team each word means (`team/WORD`) stands in the filter context of the
-- routes. A script that fails leaves no team, so it shuts out and opens nothing. route.lua clears the route cache for
-- both: the context came with a route that was found before the team was known.

local JWT = "envoy.filters.http.jwt_authn"

-- The value at a path of keys; nil where the path is empty or leads nowhere.
local function claim(claims, path)
  local value = #path > 0 and claims or nil
  for _, key in ipairs(path) do
    if type(value) ~= "table" then return nil end
    value = value[key]
  end
  return value
end

-- The one team that a claim names, be it a word or a list of words; nil and the reason where it names none or several.
-- `context` is asked for one word at a time: Envoy makes a Lua table of all that is got from it, for each request.
local function team_of(named, context)
  local found
  for _, word in ipairs(type(named) == "table" and named or {named}) do
    local team = type(word) == "string" and context:get("team/" .. word)
    if team then
      if found and found.team ~= team.team then return nil, "the token names more than one team" end
      found = team
    end
  end
  return found, not found and "the token names no team of this plane" or nil
end

function envoy_on_request(h)
  local context, metadata = h:filterContext(), h:streamInfo():dynamicMetadata()
  local paths, verified = context:get("claims"), metadata:get(JWT)
  if not (paths and verified) then  -- a CONNECT: it has no path, so neither a route nor a rule of jwt_authn
    return metadata:set("inference-plane", "no_team", "the request has no path")
  end
  local claims = verified.claims
  -- Nobody reads them again, and Envoy copies all metadata whenever a field of the audit line or a counter is read.
  metadata:set(JWT, "claims", "")
  local residency, subject = claim(claims, paths.residency or {}), claim(claims, paths.subject or {})
  local team, why = team_of(claim(claims, paths.team), context)
  if residency ~= nil then metadata:set("inference-plane", "token_residency", tostring(residency)) end
  if type(subject) == "string" then metadata:set("inference-plane", "subject", subject) end
  if team then
    for key, value in pairs(team) do metadata:set("inference-plane", key, value) end
  else
    metadata:set("inference-plane", "no_team", why)
  end
end
