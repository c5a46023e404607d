#!lua
-- Publishes messages to one queue or topic, in order. Nothing of a message is there unless all of it is.
-- KEYS[1]: the place. ARGV: group of queues, then for each message its level, its time or 0, its size, how many fields and
-- values follow, and these. Answers {dropped, what became of each: 0 taken, 1 too many, 2 too many bytes, 3 taken for
-- later, and of queues how many wait for their time, and when that was}; nothing where
-- there is no such place.
local base, group = KEYS[1], ARGV[1]
local meta = redis.call('HMGET', base, 'kind', 'priority_max', 'length_max', 'bytes_max', 'overflow', 'seq', 'ms', 'bytes', 'count', 'mark_ms', 'mark_bytes')
if not meta[1] then return false end
local is_topic = meta[1] == 'topic'
local top, length_max, bytes_max = tonumber(meta[2]) or 0, tonumber(meta[3]), tonumber(meta[4])
local overflow, seq, bytes = meta[5], tonumber(meta[6]) or 0, tonumber(meta[8]) or 0
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local ms = math.max(now, tonumber(meta[7]) or 0)
local allowed = overflow == 'dead-letter-oldest' and 2 or 1

local function waiting_of(key)
  local pending = redis.pcall('XPENDING', key, group)
  if pending.err then return redis.call('XLEN', key) end
  local out = pending[1]
  for _, one in ipairs(pending[4] or {}) do
    if one[1] == 'returned' or one[1] == 'later' then out = out - tonumber(one[2]) end
  end
  return redis.call('XLEN', key) - out
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

local function before(a, b)
  local ams, aseq = string.match(a, '(%d+)-(%d+)')
  local bms, bseq = string.match(b, '(%d+)-(%d+)')
  if ams ~= bms then return tonumber(ams) < tonumber(bms) end
  return tonumber(aseq) < tonumber(bseq)
end

-- The oldest that waits in a stream.
local function oldest_of(key)
  local best
  for _, owner in ipairs({'returned', 'later'}) do
    local row = redis.pcall('XPENDING', key, group, '-', '+', 1, owner)
    if not row.err and row[1] and (not best or before(row[1][1], best)) then best = row[1][1] end
  end
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if groups.err then return best end
  for _, one in ipairs(groups) do
    local named = {}
    for i = 1, #one, 2 do named[one[i]] = one[i + 1] end
    if named['name'] == group then
      local new = redis.call('XRANGE', key, '(' .. named['last-delivered-id'], '+', 'COUNT', 1)
      if new[1] and (not best or before(new[1][1], best)) then best = new[1][1] end
    end
  end
  return best
end

local function drop_one()
  for level = 0, top do
    local found, from
    for _, letter in ipairs({'p', 'd'}) do
      local id = oldest_of(base .. ':' .. letter .. level)
      if id and (not found or before(id, found)) then found, from = id, letter .. level end
    end
    if found then
      local entry = redis.call('XRANGE', base .. ':' .. from, found, found)
      local size = entry[1] and size_of(entry[1][2]) or 0
      redis.call('XDEL', base .. ':' .. from, found)
      redis.call('XACK', base .. ':' .. from, group, found)
      redis.call('ZREM', base .. ':due', from .. '/' .. found)
      redis.call('HDEL', base .. ':tries', from .. '/' .. found)
      return size
    end
  end
end

local waiting = 0
if length_max then
  for level = 0, top do
    waiting = waiting + waiting_of(base .. ':p' .. level) + waiting_of(base .. ':d' .. level)
  end
end

local dropped, results, published, at = 0, {}, 0, 2
local first, grouped = nil, {}
while at <= #ARGV do
  local level, due, size, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local from, to = at + 4, at + 3 + count
  at = to + 1
  local result = 0
  if not is_topic and (length_max or bytes_max) then
    local too_long = function() return length_max and waiting + 1 > length_max * allowed end
    local too_large = function() return bytes_max and bytes + size > bytes_max * allowed end
    if overflow == 'drop-oldest' and not (bytes_max and size > bytes_max) and length_max ~= 0 then
      while too_long() or too_large() do
        local freed = drop_one()
        if not freed then break end
        dropped, waiting, bytes = dropped + 1, waiting - 1, bytes - freed
      end
    end
    if too_long() then result = 1 elseif too_large() then result = 2 end
  end
  if result == 0 then
    seq = seq + 1
    if is_topic then
      redis.call('XADD', base .. ':log', seq .. '-0', unpack(ARGV, from, to))
    else
      level = math.min(level, top)
      local is_later = due > now
      local key = base .. (is_later and ':d' or ':p') .. level
      local id = ms .. '-' .. seq
      local added = redis.pcall('XADD', key, id, unpack(ARGV, from, to))
      while added.err do
        -- Another program has added something under a later id.
        if not string.find(added.err, 'equal or smaller') then return added end
        ms = ms + 1
        id = ms .. '-' .. seq
        added = redis.pcall('XADD', key, id, unpack(ARGV, from, to))
      end
      if is_later then
        result = 3
        if not grouped[level] then
          redis.pcall('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
          grouped[level] = true
        end
        redis.call('XREADGROUP', 'GROUP', group, 'later', 'COUNT', 1, 'STREAMS', key, '>')
        redis.call('XCLAIM', key, group, 'later', 0, id, 'RETRYCOUNT', 0, 'JUSTID')
        redis.call('ZADD', base .. ':due', due, 'd' .. level .. '/' .. id)
      end
    end
    first = first or seq
    waiting, bytes, published = waiting + 1, bytes + size, published + 1
  end
  results[#results + 1] = result
end
if published > 0 then
  redis.call('HSET', base, 'seq', seq, 'ms', ms, 'bytes', string.format('%.0f', bytes), 'count', string.format('%.0f', (tonumber(meta[9]) or 0) + published))
  if is_topic and (now - (tonumber(meta[10]) or 0) >= 1000 or bytes - (tonumber(meta[11]) or 0) >= 65536) then
    -- All before the first of these were there before now, and had so many bytes.
    redis.call('ZADD', base .. ':marks', now, first .. ':' .. (meta[8] or '0'))
    redis.call('HSET', base, 'mark_ms', now, 'mark_bytes', string.format('%.0f', bytes))
  end
  redis.call('XADD', base .. ':bell', 'MAXLEN', 1, '*', 'b', '')
end
if is_topic then return {dropped, table.concat(results)} end
return {dropped, table.concat(results), redis.call('ZCARD', base .. ':due'), tonumber(clock[1]) * 1000000 + tonumber(clock[2])}
