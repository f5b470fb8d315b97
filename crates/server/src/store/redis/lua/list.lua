-- A page of a tenant's tasks, one more than asked for if there are more.
local place_of_page = call.after_seq
if call.after_task then
  local place = unpacked(K.place, call.after_task) or nil
  if place and place.tenant == call.tenant
    and (not call.format or place.format == call.format) then
    place_of_page = place.seq
  else
    local gone = unpacked(K.gone, call.after_task)
    if not gone or gone.tenant ~= call.tenant then return reply({missing = true}) end
    place_of_page = gone.seq
  end
end

local CHUNK = 256
local found = {}
for _, state in ipairs(call.states) do
  local prefix = call.tenant .. '|' .. plain(state)
  local from, to = range(prefix)
  local verb = call.newest_first and 'ZREVRANGEBYLEX' or 'ZRANGEBYLEX'
  if place_of_page then
    local at = prefix .. '|' .. digits(place_of_page)
    if call.newest_first then to = '(' .. at else from = '(' .. at .. '}' end
  end
  local taken = 0
  while taken <= call.limit do
    local first, last = from, to
    if call.newest_first then first, last = to, from end
    local members = R(verb, K.list, first, last, 'LIMIT', 0, CHUNK)
    for _, member in ipairs(members) do
      local seq, id, model, format, created =
        string.match(member, '^[^|]+|%d|(%d+)|([^|]+)|([^|]+)|([^|]+)|(%d+)$')
      created = tonumber(created)
      if (not call.model or call.model == model) and (not call.format or call.format == format)
        and (not call.created_from or created >= call.created_from)
        and (not call.created_before or created < call.created_before) then
        found[#found + 1] = {seq = tonumber(seq), id = id}
        taken = taken + 1
        if taken > call.limit then break end
      end
    end
    if #members < CHUNK then break end
    if call.newest_first then to = '(' .. members[#members]
    else from = '(' .. members[#members] end
  end
end
table.sort(found, function(a, b)
  if call.newest_first then return a.seq > b.seq end
  return a.seq < b.seq
end)
local ids = {}
for i = 1, math.min(#found, call.limit) do ids[i] = found[i].id end
local page = views_of(ids)
if #found > call.limit and call.limit > 0 then page.next = found[call.limit].seq end
return reply(page)
