-- Makes tasks ready whose backoff has passed, and says which have waited too long or were kept long
-- enough: how these end is decided outside.
local function due(key, from, to)
  return R('ZRANGEBYSCORE', key, from, to, 'LIMIT', 0, call.step)
end
local now = plain(call.now)
local waited = due(K.backoff, '-inf', now)
-- After a jump of the wall clock backwards no backoff lasts longer than the longest one.
for _, id in ipairs(due(K.backoff, '(' .. plain(call.horizon), '+inf')) do
  waited[#waited + 1] = id
end
for _, id in ipairs(waited) do
  local place = unpacked(K.place, id)
  count(id, place, -1)
  place.slot, place.rev = READY, place.rev + 1
  count(id, place, 1)
  put_place(id, place)
  emit('task', id, 'tenant', place.tenant, 'pool', place.pool, 'ready', 1)
end
save()
for _, field in ipairs(due(K.grave, '-inf', now)) do
  R('ZREM', K.grave, field)
  R('HDEL', K.key, field)
end
for _, id in ipairs(due(K.gone_until, '-inf', now)) do
  R('ZREM', K.gone_until, id)
  R('HDEL', K.gone, id)
end
for _, id in ipairs(due(K.file_expiry, '-inf', now)) do
  remove_file(id)
end
for _, number in ipairs(due(K.look, '-inf', now)) do
  R('ZREM', K.look, number)
  if not is_named(number) then remove_input(number) end
end
local next_at = nil
for _, key in ipairs({K.backoff, K.deadline, K.delete, K.look, K.file_expiry}) do
  local first = R('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if first and (not next_at or tonumber(first) < next_at) then next_at = tonumber(first) end
end
return reply({
  late = due(K.deadline, '-inf', now), kept = due(K.delete, '-inf', now), next = next_at,
})
