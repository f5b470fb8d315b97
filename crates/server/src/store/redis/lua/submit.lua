-- Adds tasks of one tenant, all or none; finds what was submitted under the same key; refuses what is
-- too much. With `dry`, only says what a submit would be refused for.
local first = call.tasks[1]
local tenant = call.tenant

local function known()
  if not call.key then return nil end
  local field = tenant .. '|' .. call.key
  local entry = unpacked(K.key, field)
  if not entry then return nil end
  if entry.until_ms > call.now then return entry end
  if R('HEXISTS', K.task, entry.ids[1]) == 1 and not R('ZSCORE', K.grave, field) then
    R('HDEL', K.key, field)
  end
  return nil
end

local entry = known()
if entry then return reply({known = entry}) end
if first and first.deadline and first.deadline <= first.created then return reply({late = true}) end

local queued = tonumber(R('HGET', K.meta, 'queued') or 0)
if queued + call.count > call.max_queued then return reply({full = queued}) end

-- `rayreel_domain::tenant::admit`.
local limits = call.limits
local SLOT, SLOTS, MINUTE, DAY = 250, 240, 60000, 86400000
local function exceeded(limit, allowed, retry_ms)
  return reply({exceeded = {limit = limit, allowed = allowed, retry_ms = retry_ms}})
end

local usage = {tasks = 0, ms = 0, day_ms = 0}
if limits.queued or limits.day_ms then
  for _, account in ipairs(accounts_of(tenant)) do
    local ready, ready_ms = ready_of(account)
    local delayed, delayed_ms = delayed_of(account)
    usage.tasks = usage.tasks + ready + delayed
    usage.ms = usage.ms + ready_ms + delayed_ms
    if account.day == math.floor(call.now / DAY) then
      usage.day_ms = usage.day_ms + account.day_ms
    end
  end
end
if limits.queued and usage.tasks + call.count > limits.queued then
  return exceeded('queued', limits.queued, call.count <= limits.queued and MINUTE / 6 or nil)
end
if limits.day_ms and usage.day_ms + call.work_ms + usage.ms > limits.day_ms then
  local retry_ms = nil
  if call.work_ms <= limits.day_ms then
    local used = usage.day_ms + call.work_ms > limits.day_ms
    retry_ms = used and DAY - call.now % DAY or MINUTE
  end
  return exceeded('gpu_seconds_a_day', limits.day_ms, retry_ms)
end

-- Tasks submitted within the last minute, in slots of a quarter of a second, the oldest first.
local minute = unpacked(K.minute, tenant) or {}
local slot = math.floor(call.mono / SLOT)
while minute[1] and minute[1][1] + SLOTS < slot do table.remove(minute, 1) end
if limits.per_minute then
  local sum = 0
  for _, one in ipairs(minute) do sum = sum + one[2] end
  if sum + call.count > limits.per_minute then
    for _, one in ipairs(minute) do
      sum = sum - one[2]
      if sum + call.count <= limits.per_minute then
        return exceeded('per_minute', limits.per_minute, (one[1] + SLOTS + 1) * SLOT - call.mono)
      end
    end
    return exceeded('per_minute', limits.per_minute, nil)
  end
end

for _, task in ipairs(call.tasks or {}) do
  for _, input in ipairs(task.inputs) do
    local owner = unpacked(K.input, input)
    if not owner or owner.tenant ~= tenant then return reply({input_gone = true}) end
  end
end
if call.dry then return reply({}) end

local last = minute[#minute]
if last and last[1] >= slot then
  last[2] = last[2] + call.count
else
  minute[#minute + 1] = {slot, call.count}
end
R('HSET', K.minute, tenant, cmsgpack.pack(minute))

local ids, standings, rivals = {}, {}, nil
for _, task in ipairs(call.tasks) do
  local account = account_of(task.pool, tenant)
  account.number = account.number or number_of(tenant)
  if account.running == 0 and not next(account.queues) then
    local floor = tonumber(R('HGET', K.floor, task.pool) or 0)
    if account.virtual_ms < floor then account.virtual_ms, account.changed = floor, true end
  end
  if not account.queues[task.model] and not R('ZSCORE', K.models, task.model) then
    R('ZADD', K.models, R('ZCARD', K.models) + 1, task.model)
  end
  local place = {
    rev = 0, seq = R('HINCRBY', K.meta, 'seq', 1), tenant = tenant, pool = task.pool,
    model = task.model, rank = task.rank, estimate_ms = task.estimate_ms, format = task.format,
    created = task.created, deadline = task.deadline, state = QUEUED, slot = READY,
    not_before = 0, attempt = 0,
  }
  R('HSET', K.task, task.id, task.body)
  put_place(task.id, place)
  index_task(task.id, place, 1)
  for _, input in ipairs(task.inputs) do R('HINCRBY', K.named, input, 1) end
  ids[#ids + 1] = task.id
  -- Each stands where it stood when it came; the tasks of one submit are in one pool.
  standings[#standings + 1] = standing_of(place)
  rivals = rivals or rivals_in(task.pool)
  emit('task', task.id, 'tenant', tenant, 'pool', task.pool, 'state', 'QUEUED', 'ready', 1,
    'timers', task.deadline and 1 or 0)
end
save()
if call.key then
  local field = tenant .. '|' .. call.key
  R('ZREM', K.grave, field)
  R('HSET', K.key, field, cmsgpack.pack({
    ids = ids, request = call.request, until_ms = first.created + DAY,
  }))
end
return reply({standings = standings, rivals = rivals})
