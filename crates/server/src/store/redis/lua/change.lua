-- Writes changes of tasks that were decided outside, all of them or none: each names the revision
-- that it was decided upon.
for _, change in ipairs(call.changes) do
  change.place = unpacked(K.place, change.id)
  if not change.place or change.place.rev ~= change.rev then return reply({conflict = true}) end
  if change.beats then
    local live = unpacked(K.live, change.id)
    if not live or live.beats > change.beats then return reply({conflict = true}) end
  end
end
if call.worker then
  local worker = unpacked(K.worker, call.worker.name)
  if not worker or worker.rev ~= call.worker.rev then return reply({conflict = true}) end
  worker.quarantine, worker.failures = call.worker.quarantine, call.worker.failures
  put_worker(call.worker.name, worker)
end

-- A task that has lost its attempt.
local function release(id)
  local live = unpacked(K.live, id)
  if not live then return nil end
  R('HDEL', K.live, id)
  R('HDEL', K.claim, id)
  R('HDEL', K.progress, id)
  if R('HGET', K.holder, live.worker) == id then R('HDEL', K.holder, live.worker) end
  return live.worker
end

local function forget_delivery(id, tenant)
  local due = R('HGET', K.due_at, id)
  if due then
    R('ZREM', K.due, tenant .. '|' .. digits(tonumber(due)) .. '|' .. id)
    R('HDEL', K.due_at, id)
  end
  R('HDEL', K.delivery, id)
end

-- The key of a deleted task counts for the rest of its day, unless a newer task has it.
local function bury(change)
  if not change.key then return end
  local field = change.place.tenant .. '|' .. change.key
  local entry = unpacked(K.key, field)
  for _, id in ipairs(entry and entry.ids or {}) do
    if id == change.id then R('ZADD', K.grave, plain(entry.until_ms), field) end
  end
end

local function delete(change)
  local id, place = change.id, change.place
  index_task(id, place, -1)
  bury(change)
  R('HSET', K.gone, id, cmsgpack.pack({
    tenant = place.tenant, seq = place.seq,
  }))
  R('ZADD', K.gone_until, plain(call.now + PLACE_MS), id)
  for _, input in ipairs(change.inputs) do
    R('HINCRBY', K.named, input, -1)
    look_at_input(input, call.now)
  end
  forget_delivery(id, place.tenant)
  R('HDEL', K.task, id)
  R('HDEL', K.place, id)
  -- Its files are nobody's at once, but an upload may still be under way.
  discard(id, call.now)
  discard(id, call.now + call.garbage_after_ms)
  emit('task', id, 'tenant', place.tenant, 'pool', place.pool, 'deleted', 1, 'garbage', 1,
    'timers', 1)
end

for _, change in ipairs(call.changes) do
  local id, place = change.id, change.place
  if change.deleted then
    delete(change)
  else
    local account = account_of(place.pool, place.tenant)
    local before = place.state
    index_task(id, place, -1)
    place.rev, place.state, place.slot = place.rev + 1, change.state, change.slot
    place.not_before, place.avoid, place.attempt =
      change.not_before, change.avoid, change.attempt
    place.delete_at = change.delete_at
    index_task(id, place, 1)
    put_place(id, place)
    R('HSET', K.task, id, change.body)
    -- The body has the claim in it.
    R('HDEL', K.claim, id)
    local holder = nil
    if before == RUNNING and change.state ~= RUNNING then
      holder = release(id)
      account.running, account.changed = account.running - 1, true
    end
    if change.charge_ms ~= 0 then
      charge(account, change.virtual_ms, change.charge_ms, call.day)
    end
    if change.garbage then discard(change.garbage, call.now + call.garbage_after_ms) end
    if change.delivery then
      R('HSET', K.delivery, id, change.delivery)
      R('HSET', K.due_at, id, plain(call.now))
      R('ZADD', K.due, 0, place.tenant .. '|' .. digits(call.now) .. '|' .. id)
    end
    local event = {'task', id, 'tenant', place.tenant, 'pool', place.pool}
    local function tell(field, value) event[#event + 1] = field; event[#event + 1] = value end
    if change.state ~= before then
      tell('state', change.state_name)
      if holder then tell('worker', holder) end
      if holder and change.revoked then tell('revoked', holder) end
    end
    if change.slot == READY then tell('ready', 1) end
    if change.slot == BACKOFF or change.delete_at then tell('timers', 1) end
    if change.garbage then tell('garbage', 1) end
    if change.delivery then tell('webhooks', 1) end
    emit(unpack(event))
    -- There may be a vacancy, for which others of the tenant's tasks wait.
    if before == RUNNING and terms_of(place.tenant).running then
      for _, other in ipairs(accounts_of(place.tenant)) do
        if ready_of(other) > 0 then emit('wake', other.pool) end
      end
    end
  end
end
-- Whoever takes a submit back frees its key.
for _, field in ipairs(call.free or {}) do
  local entry = unpacked(K.key, field.tenant .. '|' .. field.key)
  for _, id in ipairs(entry and entry.ids or {}) do
    if id == field.id then R('HDEL', K.key, field.tenant .. '|' .. field.key) end
  end
end
save()
return reply({conflict = false})
