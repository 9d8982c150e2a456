-- The audit lines that are written before a prompt moves on. The chart puts this text before route.lua and bedrock.lua.
-- Envoy's own access log is written by a thread of its own, some milliseconds later; a killed Envoy takes with it what
-- is still in memory. These lines are in the kernel's hands before the first byte goes to an engine or to Amazon
-- Bedrock: one write(2) to stderr each, shorter than PIPE_BUF (4096 bytes), so that no two lines mix.
local stderr = io.stderr
local MAX_TEXT = 256  -- bytes of one value

local function escape(c)
  return string.format("\\u%04x", string.byte(c))
end

-- A JSON string of a text, or null. Of a longer one only the beginning, without a character that is cut in two.
local function quoted(text)
  if not text then return "null" end
  if #text > MAX_TEXT then text = string.gsub(string.sub(text, 1, MAX_TEXT), "[\192-\255][\128-\191]*$", "") end
  if string.find(text, '[%c"\\]') then text = string.gsub(text, '[%c"\\]', escape) end
  return '"' .. text .. '"'
end

local last, written = "", ""  -- the latest second, in the epoch's count and in words

local function clock(h)
  local now = h:timestamp()
  local second = string.sub(now, 1, -4)
  if second ~= last then last, written = second, os.date("!%Y-%m-%dT%H:%M:%S.", tonumber(second)) end
  return written .. string.sub(now, -3) .. "Z"
end

-- Writes a line of this type: its time, the request's id, and `more`, which is JSON members. Whether it was written.
local function write_line(h, kind, id, more)
  return stderr:write(
    '{"type":"' .. kind .. '","time":"' .. clock(h) .. '","request_id":' .. quoted(id) .. "," .. more .. "}\n")
end
