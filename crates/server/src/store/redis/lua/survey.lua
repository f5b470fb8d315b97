-- All accounts, workers or leases, for those who look after the whole.
local function all(key)
  local found, pairs_of = {}, R('HGETALL', key)
  for i = 1, #pairs_of, 2 do
    local value = cmsgpack.unpack(pairs_of[i + 1])
    value.name = pairs_of[i]
    found[#found + 1] = value
  end
  return found
end
if call.what == 'accounts' then
  local minutes, files = {}, {}
  local packed = R('HGETALL', K.minute)
  for i = 1, #packed, 2 do
    minutes[#minutes + 1] = {tenant = packed[i], slots = cmsgpack.unpack(packed[i + 1])}
  end
  packed = R('HGETALL', K.file_bytes)
  for i = 1, #packed, 2 do
    files[#files + 1] = {tenant = packed[i], bytes = tonumber(packed[i + 1])}
  end
  return reply({
    accounts = all(K.account), minutes = minutes, files = files,
    models = R('ZRANGE', K.models, 0, -1),
  })
end
if call.what == 'workers' then
  local workers = all(K.worker)
  for _, worker in ipairs(workers) do
    worker.seen = tonumber(R('ZSCORE', K.seen, worker.name) or 0)
  end
  return reply({workers = workers, drained = R('SMEMBERS', K.drained)})
end
return reply({leases = all(K.live)})
