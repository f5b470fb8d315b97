-- Contents and files, one by one.
if call.hold then
  local field = call.tenant .. '|' .. call.hold
  local number = R('HGET', K.content, field)
  if not number then
    number = R('HINCRBY', K.meta, 'input', 1)
    R('HSET', K.content, field, number)
    R('HSET', K.input, number, cmsgpack.pack({tenant = call.tenant, sha256 = call.hold}))
  end
  look_at_input(number, call.until_ms)
  R('HINCRBY', K.held, number, 1)
  emit('timers', 1)
  return reply({number = tonumber(number)})
end

if call.release then
  local owner = unpacked(K.input, call.release)
  if not owner or owner.tenant ~= call.tenant then return reply({}) end
  -- Of a hold that is unknown, its hour is the end.
  if not R('HGET', K.held, call.release) then return reply({}) end
  if R('HINCRBY', K.held, call.release, -1) <= 0 then
    R('HDEL', K.held, call.release)
    if not is_named(call.release) then
      R('ZADD', K.look, plain(call.now), call.release)
      emit('timers', 1)
    end
  end
  return reply({})
end

-- Is there room for so much more among the tenant's files?
local function full()
  if call.counted > call.most then return reply({full = true}) end
  local used = tonumber(R('HGET', K.file_bytes, call.tenant) or 0)
  if used + call.counted <= call.most then return nil end
  local from, to = range(call.tenant)
  local first = R('ZRANGEBYLEX', K.file_list, from, to, 'LIMIT', 0, 1)[1]
  local id = first and string.match(first, '^[^|]+|%d+|([^|]+)')
  local expires = id and tonumber(R('ZSCORE', K.file_expiry, id) or 0) or 0
  return reply({full = true, retry_ms = math.max(0, expires - call.now)})
end

if call.admits then return full() or reply({}) end

if call.put then
  if call.input then
    local owner = unpacked(K.input, call.input)
    if not owner or owner.tenant ~= call.tenant then return reply({input_gone = true}) end
  end
  local refused = full()
  if refused then return refused end
  local file = {
    tenant = call.tenant, seq = R('HINCRBY', K.meta, 'file', 1), purpose = call.purpose,
    counted = call.counted, input = call.input,
  }
  R('HSET', K.file_place, call.put, cmsgpack.pack(file))
  R('HSET', K.file, call.put, call.body)
  R('ZADD', K.file_list, 0, file_member(call.put, file))
  R('ZADD', K.file_expiry, plain(call.expires_at), call.put)
  R('HINCRBY', K.file_bytes, call.tenant, call.counted)
  if call.input then R('HINCRBY', K.named, call.input, 1) end
  emit('timers', 1)
  return reply({})
end

-- A file of the tenant's that has not expired.
local function there(id)
  local file = unpacked(K.file_place, id)
  local expires = tonumber(R('ZSCORE', K.file_expiry, id) or 0)
  return file and file.tenant == call.tenant and expires > call.now
end

if call.get then
  return reply({bodies = there(call.get) and {R('HGET', K.file, call.get)} or {}})
end

if call.delete then
  local found = there(call.delete)
  if found then
    remove_file(call.delete)
    emit('timers', 1)
  end
  return reply({found = found and true or false})
end

-- A page, and whether there is more.
local from, to = range(call.tenant)
if call.after then
  local file = unpacked(K.file_place, call.after)
  if not file or file.tenant ~= call.tenant then return reply({missing = true}) end
  local at = call.tenant .. '|' .. digits(file.seq)
  if call.ascending then from = '(' .. at .. '}' else to = '(' .. at end
end
local CHUNK = 256
local bodies = {}
while #bodies <= call.limit do
  local members
  if call.ascending then members = R('ZRANGEBYLEX', K.file_list, from, to, 'LIMIT', 0, CHUNK)
  else members = R('ZREVRANGEBYLEX', K.file_list, to, from, 'LIMIT', 0, CHUNK) end
  for _, member in ipairs(members) do
    local id, purpose = string.match(member, '^[^|]+|%d+|([^|]+)|(.*)$')
    if #bodies <= call.limit and (not call.purpose or call.purpose == purpose) and there(id) then
      bodies[#bodies + 1] = R('HGET', K.file, id)
    end
  end
  if #members < CHUNK then break end
  if call.ascending then from = '(' .. members[#members] else to = '(' .. members[#members] end
end
return reply({bodies = bodies})
