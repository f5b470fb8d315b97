-- Opens the store: is it ours, do we know it, whose history is it, and on what terms are tenants?
local version = R('HGET', K.meta, 'version')
if version and tonumber(version) > call.version then
  return reply({newer = tonumber(version), epoch = ''})
end
if not version then
  R('HSET', K.meta, 'version', call.version, 'epoch', call.epoch, 'server', call.server)
end
-- Another process of Redis may have lost what the last one had acknowledged: positions in event
-- streams hold no longer.
if R('HGET', K.meta, 'server') ~= call.server then
  R('HSET', K.meta, 'epoch', call.epoch, 'server', call.server)
end
if call.terms then
  R('DEL', K.terms)
  for _, terms in ipairs(call.terms) do
    R('HSET', K.terms, terms.tenant, cmsgpack.pack({weight = terms.weight, running = terms.running}))
  end
end
return reply({epoch = R('HGET', K.meta, 'epoch')})
