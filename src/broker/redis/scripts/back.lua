#!lua flags=allow-oom
-- What becomes of deliveries that are not done with.
-- KEYS[1]: the place. ARGV: group, ending of its own keys, reader, then for each: stream, id, its count, its new count, where
-- to (a reader, `returned`, `later`), in how many ms, what went wrong so far or nothing. What is not the reader's any more
-- stays as it is. Answers for each whether it was, how many wait for their time, and when that was.
local base, group, side, me = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local done, rings = {}, false
for at = 4, #ARGV, 7 do
  local stream, id, count, to = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 4]
  local key = base .. ':' .. stream
  local row = redis.pcall('XPENDING', key, group, id, id, 1, me)
  local is_mine = not row.err and row[1] and row[1][4] == count
  if is_mine then
    redis.call('XCLAIM', key, group, to, 0, id, 'RETRYCOUNT', ARGV[at + 3], 'JUSTID')
    if to == 'later' then
      redis.call('ZADD', base .. ':due' .. side, now + tonumber(ARGV[at + 5]), stream .. '/' .. id)
    end
    if ARGV[at + 6] ~= '' then redis.call('HSET', base .. ':tries' .. side, stream .. '/' .. id, ARGV[at + 6]) end
    rings = rings or to ~= me
  end
  done[#done + 1] = is_mine and 1 or 0
end
if rings then redis.call('XADD', base .. ':bell', 'MAXLEN', 1, '*', 'b', '') end
return {done, redis.call('ZCARD', base .. ':due' .. side), tonumber(clock[1]) * 1000000 + tonumber(clock[2])}
