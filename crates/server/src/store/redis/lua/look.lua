-- Views of tasks. With `by`, it is the call of a worker, which must be the registered one.
if call.key then return reply({known = unpacked(K.key, call.key) or nil}) end
if call.by and not worker_of(call.by) then return reply({views = {}, stale = true}) end
local seen = views_of(call.ids)
if call.worker and seen.views[1] and seen.views[1].live then
  -- Who holds the task, and how its engine has done.
  local name = seen.views[1].live.worker
  local worker = unpacked(K.worker, name)
  if worker then
    seen.worker = {
      name = name, rev = worker.rev,
      quarantine = worker.quarantine or {}, failures = worker.failures or {},
    }
  end
end
return reply(seen)
