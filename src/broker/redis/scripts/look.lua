#!lua flags=allow-oom
-- What is in a place, and forgets what a topic is to keep no longer. KEYS[1]: the place. ARGV: group of queues, beginning of
-- the names of this run's readers. Answers {kind or nothing, how many, delayed, when that was, out elsewhere, messages and bytes
-- so far, groups: {name, not delivered, out}}.
local base, group, run = KEYS[1], ARGV[1], ARGV[2]
local meta = redis.call('HMGET', base, 'kind', 'priority_max', 'retention', 'retention_bytes', 'bytes', 'count', 'seq', 'trimmed', 'exclusive')
if not meta[1] then return false end
local bytes, count = tonumber(meta[5]) or 0, tonumber(meta[6]) or 0
if meta[1] == 'queue' then
  local total, elsewhere, clock = 0, 0, redis.call('TIME')
  -- For one engine alone, which looks every second: without it all of this goes within an hour.
  local alone = meta[9] == '1'
  if alone then
    for _, part in ipairs({'', ':due', ':tries', ':bell'}) do redis.pcall('PEXPIRE', base .. part, 3600000) end
  end
  for level = 0, tonumber(meta[2]) or 0 do
    for _, letter in ipairs({'p', 'd'}) do
      local key = base .. ':' .. letter .. level
      if alone then redis.pcall('PEXPIRE', key, 3600000) end
      total = total + redis.call('XLEN', key)
      local pending = redis.pcall('XPENDING', key, group)
      if not pending.err then
        for _, one in ipairs(pending[4] or {}) do
          if one[1] ~= 'later' and one[1] ~= 'returned' and string.sub(one[1], 1, #run) ~= run then elsewhere = elsewhere + tonumber(one[2]) end
        end
      end
    end
  end
  return {'queue', total, redis.call('ZCARD', base .. ':due'), tonumber(clock[1]) * 1000000 + tonumber(clock[2]), elsewhere, count, bytes, {}}
end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local log, marks, keep = base .. ':log', base .. ':marks', nil
local function mark_of(found)
  if found[1] then
    local n = tonumber(string.match(found[1], '^%d+'))
    if not keep or n > keep then keep = n end
  end
end
if tonumber(meta[3]) then
  mark_of(redis.call('ZREVRANGEBYSCORE', marks, now - tonumber(meta[3]), '-inf', 'LIMIT', 0, 1))
end
if tonumber(meta[4]) then
  for _, one in ipairs(redis.call('ZRANGE', marks, 0, 999)) do
    if bytes - tonumber(string.match(one, ':(%d+)$')) <= tonumber(meta[4]) then mark_of({one}) break end
  end
end
if keep then
  redis.call('XTRIM', log, 'MINID', keep .. '-0')
  for _, one in ipairs(redis.call('ZRANGE', marks, 0, 999)) do
    if tonumber(string.match(one, '^%d+')) < keep then redis.call('ZREM', marks, one) else break end
  end
end
local groups = {}
local found = redis.pcall('XINFO', 'GROUPS', log)
if not found.err then
  for _, one in ipairs(found) do
    local named = {}
    for i = 1, #one, 2 do named[one[i]] = one[i + 1] end
    local last = tonumber(string.match(named['last-delivered-id'], '^%d+'))
    local new = math.max((tonumber(meta[7]) or 0) - last, 0)
    groups[#groups + 1] = {named['name'], new, named['pending']}
  end
end
return {'topic', redis.call('XLEN', log), 0, 0, 0, count, bytes, groups}
