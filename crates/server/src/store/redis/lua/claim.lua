-- Gives the worker its next task, or says why not. The choice is that of
-- `rayreel_domain::schedule::choose`, found in O(log n) from tenants in the order of their turns.
local name = call.by.worker
local worker = worker_of(call.by)
if not worker then return reply({stale = true}) end
-- An older request that was held up on its way; nobody waits for its answer.
if call.seq < worker.seq then return reply({ready = false}) end
worker.seq = call.seq

local held = R('HGET', K.holder, name)
if held then
  local live = cmsgpack.unpack(R('HGET', K.live, held))
  put_worker(name, worker)
  for _, fence in ipairs(call.holding) do
    if fence.task == held and fence.attempt == live.attempt and fence.nonce == live.nonce then
      return reply({ready = false})
    end
  end
  if live.incarnation == call.by.incarnation and live.seq == call.seq then
    return reply({task = view_of(held)})
  end
  -- The answer never arrived, or the worker has lost its memory. What that means is decided outside,
  -- and then the worker claims again.
  return reply({vanished = {task = held, attempt = live.attempt, nonce = live.nonce}})
end

worker.loaded = call.loaded
if worker.state ~= IDLE then
  worker.state, worker.idle_since = IDLE, call.mono
  emit('backlog', 1)
end
local pool = worker.pool
if worker.draining then
  forget_worker(name, pool)
  return reply({drain = true})
end

local RETEST, RETEST_MAX = 250, 60000
if call.test then
  for index, barred in ipairs(worker.quarantine) do
    if barred.model == call.test.model then
      if call.test.failed then
        barred.due = call.mono + math.min(RETEST * 2 ^ math.min(barred.failed_tests, 16), RETEST_MAX)
        barred.failed_tests = barred.failed_tests + 1
      else
        table.remove(worker.quarantine, index)
      end
      break
    end
  end
end
local barred = {}
for _, one in ipairs(worker.quarantine) do barred[one.model] = true end

-- Workers of the pool that have called not long ago, this one among them. Read only when it matters.
local crowd = nil
local function counted()
  if crowd then return crowd end
  crowd = {}
  local all = R('HGETALL', K.worker)
  for i = 1, #all, 2 do
    local seen = tonumber(R('ZSCORE', K.seen, all[i]) or 0)
    local other = all[i] == name and worker or cmsgpack.unpack(all[i + 1])
    if other.pool == pool and call.mono - seen < call.silence_ms then crowd[all[i]] = other end
  end
  return crowd
end

-- May another worker of the pool have tasks of this model?
local function elsewhere(model)
  for other_name, other in pairs(counted()) do
    if other_name ~= name and not other.draining then
      local bars = false
      for _, one in ipairs(other.quarantine or {}) do bars = bars or one.model == model end
      if not bars then return true end
    end
  end
  return false
end

local function first_of(line, avoided)
  local from, to = range(line)
  local offset = 0
  while true do
    local member = R('ZRANGEBYLEX', K.ready, from, to, 'LIMIT', offset, 1)[1]
    if not member then return nil end
    local rank, seq, id = string.match(member, '|(%d)|(%d+)|([^|]+)$')
    if not (avoided and avoided[id]) then
      return {rank = tonumber(rank), seq = tonumber(seq), id = id}
    end
    offset = offset + 1
  end
end

-- The first tasks of the highest priority that this worker may have of a tenant, by model.
local function heads_of(account)
  local avoided = nil
  local from, to = range(name .. '|' .. pool .. '|' .. account.tenant)
  for _, member in ipairs(R('ZRANGEBYLEX', K.avoid, from, to)) do
    avoided = avoided or {}
    avoided[string.match(member, '[^|]+$')] = true
  end
  local heads, top = {}, nil
  local function offer(model, head)
    if not head or (top and head.rank > top) then return end
    if top and head.rank < top then heads = {} end
    top = head.rank
    heads[model] = head
  end
  for model, queue in pairs(account.queues) do
    if not barred[model] then
      local rank = 0
      while rank < 5 and queue.n[rank + 1] == 0 do rank = rank + 1 end
      -- Counts tell who is not first, unless some are not for this worker.
      if rank < 5 and not (top and rank > top) then
        local leaves = avoided and elsewhere(model) and avoided or nil
        offer(model, first_of(pool .. '|' .. account.tenant .. '|' .. model, leaves))
      end
    end
  end
  return heads
end

local function choose()
  local loaded = call.loaded
  if loaded then
    local streak = worker.streak_model == loaded and worker.streak or 0
    if streak >= call.max_streak then loaded = nil end
  end
  local fair, limit = nil, nil
  local _, to = range(pool)
  local from = '[' .. pool .. '|'
  while true do
    local turns = R('ZRANGEBYLEX', K.turn, from, to, 'LIMIT', 0, 64)
    for _, member in ipairs(turns) do
      local virtual_ms, tenant = string.match(member, '|(%d+)|%d+|([^|]+)$')
      if limit and tonumber(virtual_ms) > limit then return fair end
      if is_vacant(tenant) then
        local heads = heads_of(account_of(pool, tenant))
        if loaded and heads[loaded] then return heads[loaded] end
        if not fair then
          for _, head in pairs(heads) do
            if not fair or head.seq < fair.seq then fair = head end
          end
          if fair and not loaded then return fair end
          limit = fair and tonumber(virtual_ms) + call.max_lead_ms
        end
      end
    end
    if #turns < 64 then return fair end
    from = '(' .. turns[#turns]
  end
end

-- The floor follows the smallest counter of those with work that may run.
local function raise_floor()
  local from, to = range(pool)
  local offset = 0
  while true do
    local member = R('ZRANGEBYLEX', K.turn, from, to, 'LIMIT', offset, 1)[1]
    if not member then return end
    local virtual_ms, tenant = string.match(member, '|(%d+)|%d+|([^|]+)$')
    if is_vacant(tenant) then
      local floor = tonumber(R('HGET', K.floor, pool) or 0)
      if tonumber(virtual_ms) > floor then
        R('HSET', K.floor, pool, plain(tonumber(virtual_ms)))
      end
      return
    end
    offset = offset + 1
  end
end

local function assign(id)
  raise_floor()
  local place = unpacked(K.place, id)
  index_task(id, place, -1)
  place.rev, place.state, place.slot = place.rev + 1, RUNNING, NONE
  place.not_before, place.avoid, place.attempt = 0, nil, place.attempt + 1
  index_task(id, place, 1)
  put_place(id, place)
  local account = account_of(pool, place.tenant)
  account.running = account.running + 1
  local weight = math.max(1, terms_of(place.tenant).weight)
  charge(account, math.floor(place.estimate_ms * 1000 / weight), place.estimate_ms, call.day)
  save()
  R('HSET', K.live, id, cmsgpack.pack({
    attempt = place.attempt, nonce = call.nonce, worker = name,
    incarnation = call.by.incarnation, seq = call.seq, beats = 0, confirmed = false, graces = 0,
    since = call.mono,
  }))
  R('HSET', K.holder, name, id)
  -- The task itself is written with its next change; until then it is read with this claim upon it.
  R('HSET', K.claim, id, cmsgpack.pack({
    worker = name, incarnation = call.by.incarnation, seq = call.seq, nonce = call.nonce,
    at = call.now,
  }))
  worker.state, worker.idle_since, worker.loaded = BUSY, nil, place.model
  worker.streak = worker.streak_model == place.model and worker.streak + 1 or 1
  worker.streak_model = place.model
  put_worker(name, worker)
  emit('task', id, 'tenant', place.tenant, 'pool', pool, 'state', 'RUNNING', 'worker', name,
    'attempt', place.attempt)
  return reply({task = view_of(id)})
end

-- Models of which the pool has ready tasks that may run.
local ready, any, for_it = {}, false, false
if R('SISMEMBER', K.drained, pool) == 0 then
  local head = choose()
  if head then return assign(head.id) end
  local from, to = range(pool)
  for _, member in ipairs(R('ZRANGEBYLEX', K.turn, from, to)) do
    local tenant = string.match(member, '[^|]+$')
    if is_vacant(tenant) then
      for model, queue in pairs(account_of(pool, tenant).queues) do
        local tasks = 0
        for rank = 1, 5 do tasks = tasks + queue.n[rank] end
        if tasks > 0 then
          ready[model], any = true, true
          for_it = for_it or not barred[model]
        end
      end
    end
  end
end

-- Has the pool more workers than it should, and is this the one that has been idle longest of those
-- that the fleet has started? Who has come by himself stays.
if not for_it and call.target and worker.launch then
  local workers, oldest = 0, true
  for _, other in pairs(counted()) do
    workers = workers + 1
    if other.launch and other.state == IDLE and other.idle_since < worker.idle_since then
      oldest = false
    end
  end
  if oldest and workers > call.target then
    forget_worker(name, pool)
    return reply({drain = true})
  end
end
put_worker(name, worker)
for _, one in ipairs(worker.quarantine) do
  if one.due <= call.mono and ready[one.model] then
    return reply({test = {model = one.model, message = one.message}})
  end
end
return reply({ready = any})
