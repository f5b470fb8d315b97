-- Who there is: registering, leaving, draining.
if call.register then
  local known = unpacked(K.worker, call.name)
  local kept = known and known.pool == call.pool and known or {}
  put_worker(call.name, {
    rev = known and known.rev or 0, incarnation = call.incarnation, pool = call.pool,
    launch = call.launch, version = call.version,
    -- To come back is neither to be healthy again nor to be wanted again.
    quarantine = kept.quarantine, draining = kept.draining,
    seq = 0, streak = 0, state = R('HEXISTS', K.holder, call.name) == 1 and BUSY or STARTING,
  })
  R('ZADD', K.seen, plain(call.mono), call.name)
  emit('worker', call.name, 'backlog', 1)
  return reply({})
end
local worker = unpacked(K.worker, call.name)
if call.leave then
  if not worker or worker.incarnation ~= call.leave then return reply({}) end
  R('ZADD', K.seen, plain(call.mono), call.name)
  local held = R('HGET', K.holder, call.name)
  if held then
    local live = cmsgpack.unpack(R('HGET', K.live, held))
    return reply({held = {task = held, attempt = live.attempt, nonce = live.nonce}})
  end
  forget_worker(call.name, worker.pool)
  return reply({found = true})
end
if call.drain then
  if not worker then return reply({}) end
  worker.draining = true
  put_worker(call.name, worker)
  -- Its claim, if one is parked, is answered; and what avoids it has no elsewhere any more.
  emit('crowd', worker.pool, 'backlog', 1)
  return reply({found = true})
end
if call.close_pool then
  R('SADD', K.drained, call.pool)
  emit('backlog', 1)
elseif call.open_pool then
  R('SREM', K.drained, call.pool)
  emit('crowd', call.pool, 'backlog', 1)
end
return reply({})
