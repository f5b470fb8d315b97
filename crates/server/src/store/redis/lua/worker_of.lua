-- Registrations of workers.

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
