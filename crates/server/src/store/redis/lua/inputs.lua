-- Contents that tenants send, each once, and the files that they have uploaded. A content is needed
-- while a task or a file names it, or while somebody holds it who is about to.

local function file_member(id, file)
  return file.tenant .. '|' .. digits(file.seq) .. '|' .. id .. '|' .. file.purpose
end

local function remove_file(id)
  local file = unpacked(K.file_place, id)
  R('HDEL', K.file_place, id)
  R('HDEL', K.file, id)
  R('ZREM', K.file_expiry, id)
  if not file then return end
  R('ZREM', K.file_list, file_member(id, file))
  if R('HINCRBY', K.file_bytes, file.tenant, -file.counted) <= 0 then
    R('HDEL', K.file_bytes, file.tenant)
  end
  if file.input then
    R('HINCRBY', K.named, file.input, -1)
    look_at_input(file.input, call.now)
  end
end

-- Forgets a content that nothing names any more. Its file becomes garbage.
local function remove_input(number)
  local input = unpacked(K.input, number)
  R('HDEL', K.named, number)
  R('HDEL', K.held, number)
  R('HDEL', K.input, number)
  if not input then return end
  R('HDEL', K.content, input.tenant .. '|' .. input.sha256)
  discard('tenant-' .. input.tenant .. '/' .. input.sha256 .. '-' .. number, call.now)
  emit('garbage', 1)
end

local function is_named(number) return tonumber(R('HGET', K.named, number) or 0) > 0 end
