#!lua flags=allow-oom
-- A reader holds no more than it says: the rest came over a connection that was lost, and goes back untried.
-- KEYS[1]: the place. ARGV: group, reader, 1 where it leaves for good, how many streams, these, then what it holds: stream
-- and id, joined by `/`. Answers how many went back.
local base, group, me, is_end, streams = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
local held, back = {}, 0
for at = 5 + streams, #ARGV do held[ARGV[at]] = true end
for n = 1, streams do
  local stream = ARGV[4 + n]
  local key = base .. ':' .. stream
  local rows = redis.pcall('XPENDING', key, group, '-', '+', 1000000, me)
  if not rows.err then
    local left = 0
    for _, row in ipairs(rows) do
      if held[stream .. '/' .. row[1]] then
        left = left + 1
      else
        redis.call('XCLAIM', key, group, 'returned', 0, row[1], 'RETRYCOUNT', math.max(row[4] - 1, 0), 'JUSTID')
        back = back + 1
      end
    end
    if is_end and left == 0 then redis.call('XGROUP', 'DELCONSUMER', key, group, me) end
  end
end
if back > 0 then redis.call('XADD', base .. ':bell', 'MAXLEN', 1, '*', 'b', '') end
return back
