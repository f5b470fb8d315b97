-- Tenants and their shares of pools.

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
  account.number = account.number or number_of(account.tenant)
  local number = string.format('%08d', account.number)
  return account.pool .. '|' .. digits(account.virtual_ms) .. '|' .. number .. '|' .. account.tenant
end

local opened = {}

-- A tenant's share of a pool. `save` writes what has changed.
local function account_of(pool, tenant)
  local key = pool .. '|' .. tenant
  local account = opened[key]
  if account then return account end
  account = unpacked(K.account, key)
    or {virtual_ms = 0, day = 0, day_ms = 0, running = 0, is_new = true}
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
      if account.is_new then
        R('SADD', K.pools, account.pool)
        account.is_new = nil
      end
      R('HSET', K.account, key, cmsgpack.pack({
        virtual_ms = account.virtual_ms, day = account.day, day_ms = account.day_ms,
        running = account.running, number = account.number,
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
