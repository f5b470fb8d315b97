-- What every script begins with. Requests and replies are MessagePack; `K` names the keys, which
-- are the same few for all scripts and lie in one slot. See docs/design/redis.md for the layout.
local R = redis.call
local BEFORE = string.sub(KEYS[1], 1, -#'meta' - 1)
local K = setmetatable({}, {__index = function(_, name) return BEFORE .. name end})
local call = cmsgpack.unpack(ARGV[1])

-- Whoever asks waits for replicas. Redis waits for what the connection itself has written last, so that
-- is now, also if all that is said was written by another: by the first try of the same submit.
if ARGV[2] then R('HSET', K.meta, 'waits', 1) end

local NONE, READY, BACKOFF = 0, 1, 2
local QUEUED, RUNNING = 0, 1
local STARTING, BUSY, IDLE = 0, 1, 2
local RIVALS = 100

-- An empty table would be packed as an array.
local function reply(value)
  if not next(value) then value = {done = true} end
  return cmsgpack.pack(value)
end

-- Numbers in members of sorted sets are padded, so that their order is that of the text. Lua's own
-- conversion rounds beyond 14 digits.
local function digits(n) return string.format('%016.0f', n) end
local function plain(n) return string.format('%.0f', n) end

local function unpacked(key, field)
  local packed = R('HGET', key, field)
  return packed and cmsgpack.unpack(packed)
end

-- All members that begin with `prefix` and a bar: names hold no bar.
local function range(prefix) return '[' .. prefix .. '|', '(' .. prefix .. '}' end

local function emit(...)
  R('XADD', K.events, 'MAXLEN', '~', TRIM, '*', ...)
end

local function discard(folder, at)
  local number = R('HINCRBY', K.meta, 'garbage', 1)
  R('HSET', K.folder, number, folder)
  R('ZADD', K.garbage, plain(at), number)
end

-- Finds out at this time whether something still names a content.
local function look_at_input(number, at)
  local known = R('ZSCORE', K.look, number)
  if not known or tonumber(known) < at then R('ZADD', K.look, plain(at), number) end
end
