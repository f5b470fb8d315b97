-- Looks at some tasks, or at all accounts: what the indexes say is what is stored.
local faults = {}
local function fault(what) faults[#faults + 1] = what end

if call.accounts then
  local queued = 0
  for _, name in ipairs(R('HKEYS', K.account)) do
    local pool, tenant = string.match(name, '^([^|]+)|(.+)$')
    local account = account_of(pool, tenant)
    local stands = turn(account)
    if stands and not R('ZSCORE', K.turn, stands) then fault(name .. ' has no turn') end
    for model, queue in pairs(account.queues) do
      for rank = 1, 5 do
        local from, to = range(name .. '|' .. model .. '|' .. (rank - 1))
        local found = R('ZLEXCOUNT', K.ready, from, to)
        if found ~= queue.n[rank] then
          fault(name .. ' counts ' .. queue.n[rank] .. ' tasks of ' .. model .. ' at rank '
            .. rank .. ', and has ' .. found)
        end
        queued = queued + queue.n[rank]
      end
      queued = queued + queue.delayed
    end
  end
  local known = tonumber(R('HGET', K.meta, 'queued') or 0)
  if known ~= queued then fault(known .. ' tasks are counted, ' .. queued .. ' are queued') end
  local ready, delayed = R('ZCARD', K.ready), R('ZCARD', K.backoff)
  if known ~= ready + delayed then
    fault(known .. ' tasks are counted, ' .. (ready + delayed) .. ' are in the queues')
  end
  local running = 0
  for _, name in ipairs(R('HKEYS', K.account)) do
    running = running + account_of(string.match(name, '^([^|]+)|(.+)$')).running
  end
  if running ~= R('HLEN', K.live) then
    fault(running .. ' tasks are counted as running, ' .. R('HLEN', K.live) .. ' have a lease')
  end
  if R('HLEN', K.live) ~= R('HLEN', K.holder) then fault('leases and their holders differ') end
  if R('HLEN', K.task) ~= R('ZCARD', K.list) then fault('tasks and their list differ') end
  return reply({faults = faults})
end

local scan = R('HSCAN', K.place, call.cursor, 'COUNT', call.step)
local ids = {}
for i = 1, #scan[2], 2 do
  local id, place = scan[2][i], cmsgpack.unpack(scan[2][i + 1])
  ids[#ids + 1] = id
  if not R('ZSCORE', K.list, list_member(id, place)) then fault(id .. ': it is in no list') end
  if place.slot == READY and not R('ZSCORE', K.ready, ready_member(id, place)) then
    fault(id .. ': it is ready, and no claim finds it')
  end
  local waits = tonumber(R('ZSCORE', K.backoff, id) or -1)
  if place.slot == BACKOFF and waits ~= place.not_before then
    fault(id .. ': it does not wait for the time that it should')
  end
  if place.deadline and place.state == QUEUED and not R('ZSCORE', K.deadline, id) then
    fault(id .. ': nobody watches its deadline')
  end
  if place.delete_at and not R('ZSCORE', K.delete, id) then fault(id .. ': it is kept for ever') end
  local live = unpacked(K.live, id)
  if (place.state == RUNNING) ~= (live and true or false) then
    fault(id .. ': it runs without a lease, or has one and does not run')
  end
  if live and R('HGET', K.holder, live.worker) ~= id then fault(id .. ': nobody holds its lease') end
end
local seen = views_of(ids)
seen.faults, seen.cursor = faults, scan[1]
return reply(seen)
