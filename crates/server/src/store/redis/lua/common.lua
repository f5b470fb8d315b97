-- What every script begins with. Requests and replies are MessagePack; `K` names the keys, which
-- are the same few for all scripts and lie in one slot. See docs/design/redis.md for the layout.
local R = redis.call
local call = cmsgpack.unpack(ARGV[1])

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

-- Tenants -----------------------------------------------------------------------------------------

local function terms_of(tenant)
  return cmsgpack.unpack(R('HGET', K.terms, tenant) or R('HGET', K.terms, '*'))
end

-- In the order in which they came: this breaks ties.
local function number_of(tenant)
  local number = R('HGET', K.tenant, tenant)
  if not number then
    number = R('HLEN', K.tenant) + 1
    R('HSET', K.tenant, tenant, number)
  end
  return tonumber(number)
end

local function ready_of(account)
  local count, ms = 0, 0
  for _, queue in pairs(account.queues) do
    for rank = 1, 5 do count = count + queue.n[rank] end
    ms = ms + queue.ms
  end
  return count, ms
end

local function delayed_of(account)
  local count, ms = 0, 0
  for _, queue in pairs(account.queues) do
    count, ms = count + queue.delayed, ms + queue.delayed_ms
  end
  return count, ms
end

-- A tenant's place among those who have ready tasks in a pool; none if it has none.
local function turn(account)
  if ready_of(account) == 0 then return false end
  local number = string.format('%08d', number_of(account.tenant))
  return account.pool .. '|' .. digits(account.virtual_ms) .. '|' .. number .. '|' .. account.tenant
end

local opened = {}

-- A tenant's share of a pool. `save` writes what has changed.
local function account_of(pool, tenant)
  local key = pool .. '|' .. tenant
  local account = opened[key]
  if account then return account end
  account = unpacked(K.account, key) or {virtual_ms = 0, day = 0, day_ms = 0, running = 0}
  account.queues = account.queues or {}
  account.pool, account.tenant = pool, tenant
  account.stood = turn(account)
  opened[key] = account
  return account
end

local function save()
  for key, account in pairs(opened) do
    if account.changed then
      local stands = turn(account)
      if account.stood ~= stands then
        if account.stood then R('ZREM', K.turn, account.stood) end
        if stands then R('ZADD', K.turn, 0, stands) end
        account.stood = stands
      end
      R('SADD', K.pools, account.pool)
      R('HSET', K.account, key, cmsgpack.pack({
        virtual_ms = account.virtual_ms, day = account.day, day_ms = account.day_ms,
        running = account.running,
        -- An empty table is packed as an array, which is no map.
        queues = next(account.queues) and account.queues or nil,
      }))
      account.changed = false
    end
  end
end

local function accounts_of(tenant)
  local all = {}
  for _, pool in ipairs(R('SMEMBERS', K.pools)) do
    all[#all + 1] = account_of(pool, tenant)
  end
  return all
end

-- May the tenant run one more?
local function is_vacant(tenant)
  local most = terms_of(tenant).running
  if not most then return true end
  local running = 0
  for _, account in ipairs(accounts_of(tenant)) do running = running + account.running end
  return running < most
end

-- Charges so many virtual and real milliseconds; gives back if they are negative.
local function charge(account, virtual_ms, ms, day)
  account.changed = true
  account.virtual_ms = math.max(0, account.virtual_ms + virtual_ms)
  if ms ~= 0 then
    local so_far = account.day == day and account.day_ms or 0
    account.day, account.day_ms = day, math.max(0, so_far + ms)
  end
end

-- Tasks -------------------------------------------------------------------------------------------

local function line_of(place) return place.pool .. '|' .. place.tenant .. '|' .. place.model end

local function ready_member(id, place)
  return line_of(place) .. '|' .. plain(place.rank) .. '|' .. digits(place.seq) .. '|' .. id
end

local function avoid_member(id, place)
  return place.avoid .. '|' .. place.pool .. '|' .. place.tenant .. '|' .. id
end

-- What a list selects by stands in the member.
local function list_member(id, place)
  return place.tenant .. '|' .. plain(place.state) .. '|' .. digits(place.seq) .. '|' .. id .. '|'
    .. place.model .. '|' .. place.format .. '|' .. plain(place.created)
end

-- Counts a task in its queue, or (by -1) no longer.
local function count(id, place, by)
  if place.slot == NONE then return end
  local account = account_of(place.pool, place.tenant)
  account.changed = true
  local queue = account.queues[place.model]
    or {n = {0, 0, 0, 0, 0}, ms = 0, delayed = 0, delayed_ms = 0}
  account.queues[place.model] = queue
  local verb = by > 0 and 'ZADD' or 'ZREM'
  local function index(key, score, member)
    if by > 0 then R('ZADD', key, score, member) else R('ZREM', key, member) end
  end
  if place.slot == READY then
    queue.n[place.rank + 1] = queue.n[place.rank + 1] + by
    queue.ms = queue.ms + by * place.estimate_ms
    index(K.ready, 0, ready_member(id, place))
    if place.avoid then index(K.avoid, 0, avoid_member(id, place)) end
  else
    queue.delayed = queue.delayed + by
    queue.delayed_ms = queue.delayed_ms + by * place.estimate_ms
    index(K.backoff, plain(place.not_before), id)
  end
  local left = queue.delayed
  for rank = 1, 5 do left = left + queue.n[rank] end
  if left == 0 then account.queues[place.model] = nil end
  R('HINCRBY', K.meta, 'queued', by)
end

-- Enters a task into the indexes, or (by -1) takes it out of them.
local function index_task(id, place, by)
  count(id, place, by)
  local function index(key, score, member)
    if by > 0 then R('ZADD', key, score, member) else R('ZREM', key, member) end
  end
  index(K.list, 0, list_member(id, place))
  if place.deadline and place.state == QUEUED then
    index(K.deadline, plain(place.deadline), id)
  end
  if place.delete_at then index(K.delete, plain(place.delete_at), id) end
end

local function put_place(id, place) R('HSET', K.place, id, cmsgpack.pack(place)) end

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

-- What can be seen of a task.
local function view_of(id)
  local body = R('HGET', K.task, id)
  if not body then return nil end
  local place = unpacked(K.place, id)
  local view = {id = id, body = body, place = place}
  if place.state == RUNNING then
    view.claim = unpacked(K.claim, id) or nil
    view.live = unpacked(K.live, id) or nil
    view.progress = R('HGET', K.progress, id) or nil
  elseif place.slot == READY then
    local account = account_of(place.pool, place.tenant)
    local tasks, ms = ready_of(account)
    local ahead = 0
    for model, queue in pairs(account.queues) do
      for rank = 1, place.rank do ahead = ahead + queue.n[rank] end
      if queue.n[place.rank + 1] > 0 then
        local line = place.pool .. '|' .. place.tenant .. '|' .. model .. '|' .. plain(place.rank)
        ahead = ahead + R('ZLEXCOUNT', K.ready, '[' .. line .. '|',
          '(' .. line .. '|' .. digits(place.seq))
      end
    end
    view.standing = {virtual_ms = account.virtual_ms, tasks = tasks, ms = ms, ahead = ahead}
  elseif place.state ~= QUEUED then
    view.delivery = R('HGET', K.delivery, id) or nil
  end
  return view
end

-- Views, and who else has ready tasks in the pools of those that are ready: the first of them, by
-- whom nearly all that starts earlier is had.
local function views_of(ids)
  local views, rivals = {}, {}
  for _, id in ipairs(ids) do
    local view = view_of(id)
    if view then
      views[#views + 1] = view
      local pool = view.standing and view.place.pool
      if pool and not rivals[pool] then
        rivals[pool] = {}
        local from, to = range(pool)
        for _, member in ipairs(R('ZRANGEBYLEX', K.turn, from, to, 'LIMIT', 0, RIVALS)) do
          local account = account_of(pool, string.match(member, '[^|]+$'))
          local tasks, ms = ready_of(account)
          table.insert(rivals[pool],
            {tenant = account.tenant, virtual_ms = account.virtual_ms, tasks = tasks, ms = ms})
        end
      end
    end
  end
  return {views = views, rivals = next(rivals) and rivals or nil}
end

-- Workers -----------------------------------------------------------------------------------------

-- The registration, if it is the newest of its name. Its call is noted.
local function worker_of(by)
  local worker = unpacked(K.worker, by.worker)
  if not worker or worker.incarnation ~= by.incarnation then return nil end
  R('ZADD', K.seen, plain(call.mono), by.worker)
  worker.quarantine = worker.quarantine or {}
  return worker
end

local function put_worker(name, worker)
  worker.rev = worker.rev + 1
  R('HSET', K.worker, name, cmsgpack.pack(worker))
end

local function forget_worker(name, pool)
  R('HDEL', K.worker, name)
  R('ZREM', K.seen, name)
  -- What avoided this worker may now be free for another.
  emit('gone', name, 'wake', pool, 'backlog', 1)
end
