-- Looks through a tenant's tasks, state by state, for those that fit. What it looks at in one go is
-- bounded, for everybody else waits meanwhile; `more` says where to go on. If it comes to an end at once,
-- it shows the page itself.
local BUDGET, CHUNK = 4096, 256
local after = call.after_seq
if call.after_task then
  local place = unpacked(K.place, call.after_task) or nil
  if place and place.tenant == call.tenant
    and (not call.format or place.format == call.format) then
    after = place.seq
  else
    local gone = unpacked(K.gone, call.after_task)
    if not gone or gone.tenant ~= call.tenant then return reply({missing = true}) end
    after = gone.seq
  end
end

local function fits(model, format, created)
  return (not call.model or call.model == model) and (not call.format or call.format == format)
    and (not call.created_from or created >= call.created_from)
    and (not call.created_before or created < call.created_before)
end

local verb = call.newest_first and 'ZREVRANGEBYLEX' or 'ZRANGEBYLEX'
local found, more = {}, {}
for _, line in ipairs(call.lines) do
  local prefix = call.tenant .. '|' .. plain(line.state)
  local from, to = range(prefix)
  local function go_on(member)
    if call.newest_first then to = '(' .. member else from = '(' .. member end
  end
  if after then
    local at = prefix .. '|' .. digits(after)
    go_on(call.newest_first and at or at .. '}')
  end
  if line.last then go_on(line.last) end
  local taken, last, is_over = line.taken, line.last, false
  while taken <= call.limit and not is_over do
    if BUDGET <= 0 then
      more[#more + 1] = {state = line.state, taken = taken, last = last}
      break
    end
    local first, final = from, to
    if call.newest_first then first, final = to, from end
    local members = R(verb, K.list, first, final, 'LIMIT', 0, CHUNK)
    BUDGET = BUDGET - CHUNK
    is_over = #members < CHUNK
    for _, member in ipairs(members) do
      last = member
      local seq, id, model, format, created =
        string.match(member, '^[^|]+|%d|(%d+)|([^|]+)|([^|]+)|([^|]+)|(%d+)$')
      if fits(model, format, tonumber(created)) then
        found[#found + 1] = {seq = tonumber(seq), id = id}
        taken = taken + 1
        if taken > call.limit then break end
      end
    end
    if last then go_on(last) end
  end
end
if #more > 0 or call.resumed then
  return reply({found = found, more = #more > 0 and more or nil, after = after})
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
