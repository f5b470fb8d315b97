-- Renews a lease and keeps the progress. With the first beat the claim is confirmed.
if not worker_of(call.by) then return reply({stale = true}) end
local id = call.fence.task
local live = unpacked(K.live, id)
if not live or live.attempt ~= call.fence.attempt or live.nonce ~= call.fence.nonce then
  return reply({gone = true})
end
live.beats, live.confirmed, live.graces = live.beats + 1, true, 0
R('HSET', K.live, id, cmsgpack.pack(live))
if call.progress then
  R('HSET', K.progress, id, call.progress)
  emit('task', id, 'tenant', call.tenant or '', 'progress', call.progress)
end
return reply({})
