#!lua
-- Makes a queue or topic that is not there, and says how it is. KEYS[1]: the place. ARGV: its kind, group of queues, how many
-- settings follow with their values, these, then its streams. Answers the settings that are there, with their values.
local base, kind, group = KEYS[1], ARGV[1], ARGV[2]
local count = tonumber(ARGV[3])
if redis.call('EXISTS', base) == 0 then
  redis.call('HSET', base, 'kind', kind, unpack(ARGV, 4, 3 + count))
end
if kind == 'queue' then
  for at = 4 + count, #ARGV do
    local made = redis.pcall('XGROUP', 'CREATE', base .. ':' .. ARGV[at], group, '0', 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
  end
end
return redis.call('HGETALL', base)
