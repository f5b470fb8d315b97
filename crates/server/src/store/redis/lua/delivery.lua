-- The outbox of webhooks, in which tenants take turns.
local function member(id, tenant, due) return tenant .. '|' .. digits(due) .. '|' .. id end

if call.task then
  -- One delivery, and its task where somebody asks for it to be made again; or its change, if
  -- nobody was faster.
  local body = R('HGET', K.delivery, call.task)
  if not call.body then
    return reply({body = body or nil, exists = R('HEXISTS', K.task, call.task) == 1})
  end
  if (body or '') ~= call.expected or R('HEXISTS', K.task, call.task) == 0 then
    return reply({conflict = true})
  end
  local due = R('HGET', K.due_at, call.task)
  if due then R('ZREM', K.due, member(call.task, call.tenant, tonumber(due))) end
  R('HDEL', K.due_at, call.task)
  if call.due then
    R('HSET', K.due_at, call.task, plain(call.due))
    R('ZADD', K.due, 0, member(call.task, call.tenant, call.due))
  end
  R('HSET', K.delivery, call.task, call.body)
  if call.wake then emit('webhooks', 1) end
  return reply({})
end

-- What is due of each tenant that has room, and when the next one is. It goes from tenant to tenant
-- by the index, never through one tenant's heap.
local tenants = {}
local from = '-'
while true do
  local first = R('ZRANGEBYLEX', K.due, from, '+', 'LIMIT', 0, 1)[1]
  if not first then break end
  local tenant = string.match(first, '^[^|]+')
  tenants[#tenants + 1] = tenant
  from = '(' .. tenant .. '}'
end
local found, next_at = {}, nil
for step = 1, #tenants do
  -- No tenant is always the first.
  local tenant = tenants[(call.start + step) % #tenants + 1]
  local free = math.min(call.total - #found, call.per_tenant - (call.busy[tenant] or 0))
  if call.total - #found <= 0 then break end
  if free > 0 then
    local function take(after, until_ms)
      local low = after and '(' .. tenant .. '|' .. digits(after) .. '}' or '[' .. tenant .. '|'
      local high = until_ms and '(' .. tenant .. '|' .. digits(until_ms) .. '}'
        or '(' .. tenant .. '}'
      if free <= 0 then return end
      for _, one in ipairs(R('ZRANGEBYLEX', K.due, low, high, 'LIMIT', 0, free)) do
        local id = string.match(one, '[^|]+$')
        found[#found + 1] = {task = id, body = R('HGET', K.delivery, id)}
        free = free - 1
      end
    end
    take(nil, call.now)
    -- Beyond the horizon is what was written before the clock fell back.
    take(call.horizon, nil)
    local later = R('ZRANGEBYLEX', K.due, '(' .. tenant .. '|' .. digits(call.now) .. '}',
      '(' .. tenant .. '}', 'LIMIT', 0, 1)[1]
    if later then
      local at = tonumber(string.match(later, '|(%d+)|'))
      if not next_at or at < next_at then next_at = at end
    end
  end
end
return reply({found = found, next = next_at})
