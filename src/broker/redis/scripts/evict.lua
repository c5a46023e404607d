#!lua flags=allow-oom
-- Takes from a queue what it is to keep no longer: what has expired at the head of each priority, and the oldest of the
-- lowest priority as far as they are beyond its limits.
-- KEYS[1]: the place. ARGV: group, reader, how many at most. Answers deliveries as `tend.lua` has them.
local base, group, me, room = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local meta = redis.call('HMGET', base, 'kind', 'priority_max', 'length_max', 'bytes_max', 'overflow', 'bytes', 'ttl')
if meta[1] ~= 'queue' then return false end
local top, length_max, bytes_max = tonumber(meta[2]) or 0, tonumber(meta[3]), tonumber(meta[4])
local bytes, ttl, taken = tonumber(meta[6]) or 0, tonumber(meta[7]), {}
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function value_of(fields, wanted)
  for i = 1, #fields, 2 do
    if fields[i] == wanted then return fields[i + 1] end
  end
  return nil
end

local function size_of(fields)
  local size = 0
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'payload' or name == 'key' then size = size + #value
    elseif string.sub(name, 1, 2) == 'h:' then size = size + #name - 2 + #value end
  end
  return size
end

local function has_expired(id, fields)
  local at = tonumber(value_of(fields, 'expires-at'))
  if at and at <= now then return true end
  return ttl and tonumber(string.match(id, '%d+')) + ttl <= now
end

local function give(stream, id, count, fields)
  taken[#taken + 1] = {stream, count, id, fields, redis.call('HGET', base .. ':tries', stream .. '/' .. id) or ''}
  room = room - 1
end

local function last_of(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if groups.err then return nil end
  for _, one in ipairs(groups) do
    local named = {}
    for i = 1, #one, 2 do named[one[i]] = one[i + 1] end
    if named['name'] == group then return named['last-delivered-id'] end
  end
end

-- Takes from the head of a stream as long as `wanted` says so.
local function head(stream, wanted)
  local key = base .. ':' .. stream
  local rows = redis.pcall('XPENDING', key, group, '-', '+', 1000, 'returned')
  if rows.err then return end
  for _, row in ipairs(rows) do
    if room <= 0 then return end
    local entry = redis.call('XRANGE', key, row[1], row[1])
    if entry[1] then
      if not wanted(row[1], entry[1][2]) then return end
      redis.call('XCLAIM', key, group, me, 0, row[1])
      give(stream, row[1], row[4] + 1, entry[1][2])
    end
  end
  if string.sub(stream, 1, 1) == 'd' then return end
  local last = last_of(key)
  while last and room > 0 do
    local entry = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', 1)
    if not entry[1] or not wanted(entry[1][1], entry[1][2]) then return end
    last = entry[1][1]
    redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', key, '>')
    give(stream, last, 1, entry[1][2])
  end
end

for level = top, 0, -1 do
  head('p' .. level, has_expired)
  head('d' .. level, has_expired)
end

if meta[5] == 'dead-letter-oldest' and (length_max or bytes_max) then
  local waiting, bytes_out = 0, 0
  for level = 0, top do
    for _, letter in ipairs({'p', 'd'}) do
      local key = base .. ':' .. letter .. level
      local pending = redis.pcall('XPENDING', key, group)
      if not pending.err then
        waiting = waiting + redis.call('XLEN', key) - pending[1]
        for _, one in ipairs(pending[4] or {}) do
          if one[1] == 'returned' or one[1] == 'later' then waiting = waiting + tonumber(one[2]) end
        end
      end
    end
  end
  for _, one in ipairs(taken) do bytes = bytes - size_of(one[4]) end
  local function is_beyond(_, fields)
    if not ((length_max and waiting > length_max) or (bytes_max and bytes > bytes_max)) then return false end
    waiting, bytes = waiting - 1, bytes - size_of(fields)
    return true
  end
  for level = 0, top do
    head('p' .. level, is_beyond)
    head('d' .. level, is_beyond)
  end
end
return taken
