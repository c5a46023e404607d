#!lua flags=allow-oom
-- Forgets deliveries of a queue whose bytes are counted. KEYS[1]: the place. ARGV: group, then for each: stream, id, size.
local base, freed = KEYS[1], 0
for at = 2, #ARGV, 3 do
  local key = base .. ':' .. ARGV[at]
  if redis.call('XDEL', key, ARGV[at + 1]) == 1 then freed = freed + tonumber(ARGV[at + 2]) end
  redis.call('XACK', key, ARGV[1], ARGV[at + 1])
end
if freed > 0 then redis.call('HINCRBY', base, 'bytes', string.format('%.0f', -freed)) end
return freed
