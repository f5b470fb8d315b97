-- The duties that one server has at a time. A lease of no length gives one back.
local now = call.mono
local known = unpacked(K.lead, call.duty)
-- Nobody's lease is longer than one: a Redis whose clock is behind has taken over.
local held = known and now < known.until_ms and known.until_ms <= now + call.longest
if held and known.server ~= call.server then return reply({leads = false}) end
if call.ms == 0 then
  if known and known.server == call.server then R('HDEL', K.lead, call.duty) end
  return reply({leads = false})
end
-- The next rescuer gives every lease its full time, and knows how often that has happened.
if call.graces and call.server ~= R('HGET', K.meta, 'rescuer') then
  R('HSET', K.meta, 'rescuer', call.server)
  local all = R('HGETALL', K.live)
  for i = 1, #all, 2 do
    local live = cmsgpack.unpack(all[i + 1])
    live.graces = live.graces + 1
    R('HSET', K.live, all[i], cmsgpack.pack(live))
  end
end
R('HSET', K.lead, call.duty, cmsgpack.pack({server = call.server, until_ms = now + call.ms}))
return reply({leads = true})
