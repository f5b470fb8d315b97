-- Records that stand for themselves, by their kind, and garbage.
if call.collected then
  for _, number in ipairs(call.collected) do
    R('ZREM', K.garbage, number)
    R('HDEL', K.folder, number)
  end
  return reply({})
end
if call.garbage then
  local found = {}
  local due = R('ZRANGEBYSCORE', K.garbage, '-inf', plain(call.now), 'LIMIT', 0, call.garbage)
  for _, number in ipairs(due) do
    found[#found + 1] = {id = tonumber(number), folder = R('HGET', K.folder, number)}
  end
  return reply({garbage = found})
end
local key = K[call.kind]
if call.all then return reply({all = R('HVALS', key)}) end
local known = R('HGET', key, call.id)
if call.remove then
  R('HDEL', key, call.id)
elseif call.body and (call.force or (known or '') == (call.expected or '')) then
  R('HSET', key, call.id, call.body)
  known = call.body
  if call.kind == 'api_key' then emit('keys', 1) end
end
return reply({all = known and {known} or {}})
