-- The members of one JSON object, found without parsing it: strings are jumped over from quote to quote, and only
-- what stands between them is looked at. Shared by route.lua and bedrock.lua; the chart puts this text before theirs.
local byte, find, match, sub = string.byte, string.find, string.match, string.sub

-- Every reason for refusing a request body, as the client reads it. Fixed words: no text of a client is repeated.
local REFUSALS = {
  no_body = "the request has no body",
  compressed = "the body must not be compressed (content-encoding)",
  not_object = "the body is not one JSON object",
  text_after = "text stands after the body's JSON object",
  too_deep = "the body nests deeper than 128 levels",
  too_many = "the body has more than 256 top-level keys",
  escaped_key = "a key is written with escapes at the top level of the body or of `stream_options`",
  key_twice = "a top-level key stands twice in the body",
  model_twice = "`model` stands twice in the body",
  stream_twice = "`stream` stands twice in the body",
  stream_options_twice = "`stream_options` stands twice in the body",
  include_usage_twice = "`include_usage` stands twice in `stream_options`",
  model_missing = "the body has no top-level `model`",
  model_form = "`model` must be a string of at most 128 letters, digits and . _ : / - without escapes",
  two_models = "the path and the body name two models",
  stream_form = "`stream` must be true, false or null",
  stream_options_form = "`stream_options` must be one JSON object or null",
  stored = "`previous_response_id`, `conversation` and `background` need a stored response, and nothing is stored here",
  include_usage_form = "`stream_options.include_usage` must be true, false or null",
}

local MAX_DEPTH, MAX_MEMBERS = 128, 256
local QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
local OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 93, 123, 125

-- RFC 8259 section 2 and Python's NaN and Infinity: all that may stand outside strings, apart from brackets.
local BLANK, WORD, OUTSIDE = {}, {}, {[COMMA] = true, [COLON] = true}
for c in string.gmatch(" \t\r\n", ".") do BLANK[byte(c)], OUTSIDE[byte(c)] = true, true end
for code = 0, 127 do
  if find(string.char(code), "^[%w+.-]$") then WORD[code], OUTSIDE[code] = true, true end
end

local function skip_blanks(text, i)
  while BLANK[byte(text, i)] do i = i + 1 end
  return i
end

-- Position of the quote that closes the string opened at `i`; nil without one.
local function string_end(text, i)
  local close = i
  repeat
    close = find(text, '"', close + 1, true)
    if not close then return nil end
    local before = close - 1
    while byte(text, before) == BACKSLASH do before = before - 1 end
  until (close - before) % 2 == 1
  return close
end

local closers = {}  -- scratch: the closing bracket owed at each depth

-- Position of the bracket that closes the object or array opened at `i`; nil and a reason without one.
local function container_end(text, i)
  local depth = 1
  closers[1] = byte(text, i) + 2
  while true do
    i = i + 1
    local c = byte(text, i)
    if c == QUOTE then
      i = string_end(text, i)
      if not i then return nil, "not_object" end
    elseif c == OPEN_OBJECT or c == OPEN_LIST then
      depth = depth + 1
      if depth >= MAX_DEPTH then return nil, "too_deep" end
      closers[depth] = c + 2
    elseif c == CLOSE_OBJECT or c == CLOSE_LIST then
      if closers[depth] ~= c then return nil, "not_object" end
      depth = depth - 1
      if depth == 0 then return i end
    elseif not OUTSIDE[c] then
      return nil, "not_object"
    end
  end
end

-- Position of the last byte of the value that begins at `i`; nil and a reason where none does.
local function value_end(text, i)
  local c = byte(text, i)
  if c == OPEN_OBJECT or c == OPEN_LIST then return container_end(text, i) end
  local last
  if c == QUOTE then
    last = string_end(text, i)
  elseif WORD[c] then
    last = i
    while WORD[byte(text, last + 1)] do last = last + 1 end
  end
  return last, not last and "not_object" or nil
end

-- The members of the one JSON object that `text` is: a list of {key, first, last} in their order (positions of the
-- value's first and last byte) and the same by key; or nil and a key of REFUSALS. `unique`: a set of the keys that may
-- stand only once; nil means every key. Values are delimited, not validated: a parser may still reject the text, but
-- one that accepts it finds the same members.
local function members(text, unique)
  local i = skip_blanks(text, 1)
  if byte(text, i) ~= OPEN_OBJECT then return nil, "not_object" end
  local list, by_key, count = {}, {}, 0
  i = skip_blanks(text, i + 1)
  if byte(text, i) ~= CLOSE_OBJECT then
    while true do
      if byte(text, i) ~= QUOTE then return nil, "not_object" end
      local close = string_end(text, i)
      if not close then return nil, "not_object" end
      local key = sub(text, i + 1, close - 1)
      if find(key, "\\", 1, true) then return nil, "escaped_key" end
      i = skip_blanks(text, close + 1)
      if byte(text, i) ~= COLON then return nil, "not_object" end
      local first = skip_blanks(text, i + 1)
      local last, reason = value_end(text, first)
      if not last then return nil, reason end
      if by_key[key] then
        if not unique then return nil, "key_twice" end
        if unique[key] then return nil, key .. "_twice" end
      end
      count = count + 1
      if count > MAX_MEMBERS then return nil, "too_many" end
      by_key[key] = {key = key, first = first, last = last}
      list[count] = by_key[key]
      i = skip_blanks(text, last + 1)
      local c = byte(text, i)
      if c == CLOSE_OBJECT then break end
      if c ~= COMMA then return nil, "not_object" end
      i = skip_blanks(text, i + 1)
    end
  end
  if skip_blanks(text, i + 1) <= #text then return nil, "text_after" end
  return list, by_key
end

-- The text of a member's value; nil where the member is absent.
local function value(text, member)
  return member and sub(text, member.first, member.last)
end
