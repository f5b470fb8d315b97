-- Tasks in their indexes, and what can be seen of them.

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

-- Where a ready task stands among its tenant's.
local function standing_of(place)
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
  return {virtual_ms = account.virtual_ms, tasks = tasks, ms = ms, ahead = ahead}
end

-- Who has ready tasks in a pool: the first of them, by whom nearly all that starts earlier is had.
local function rivals_in(pool)
  local rivals = {}
  local from, to = range(pool)
  for _, member in ipairs(R('ZRANGEBYLEX', K.turn, from, to, 'LIMIT', 0, RIVALS)) do
    local account = account_of(pool, string.match(member, '[^|]+$'))
    local tasks, ms = ready_of(account)
    rivals[#rivals + 1] =
      {tenant = account.tenant, virtual_ms = account.virtual_ms, tasks = tasks, ms = ms}
  end
  return rivals
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
    view.standing = standing_of(place)
  elseif place.state ~= QUEUED then
    view.delivery = R('HGET', K.delivery, id) or nil
  end
  return view
end

-- Views, and who else has ready tasks in the pools of those that are ready.
local function views_of(ids)
  local views, rivals = {}, {}
  for _, id in ipairs(ids) do
    local view = view_of(id)
    if view then
      views[#views + 1] = view
      local pool = view.standing and view.place.pool
      if pool and not rivals[pool] then rivals[pool] = rivals_in(pool) end
    end
  end
  return {views = views, rivals = next(rivals) and rivals or nil}
end
