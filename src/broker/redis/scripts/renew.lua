#!lua flags=allow-oom
-- Begins leases anew. KEYS[1]: the place. ARGV: group, reader, then for each: stream, id. What is not the reader's any more
-- stays as it is. Answers which are not, by their place.
local base, group, me, gone, mine = KEYS[1], ARGV[1], ARGV[2], {}, {}
for at = 3, #ARGV, 2 do
  local stream, id = ARGV[at], ARGV[at + 1]
  if not mine[stream] then
    mine[stream] = {}
    local rows = redis.pcall('XPENDING', base .. ':' .. stream, group, '-', '+', 1000000, me)
    if not rows.err then
      for _, row in ipairs(rows) do mine[stream][row[1]] = true end
    end
  end
  if mine[stream][id] then
    redis.call('XCLAIM', base .. ':' .. stream, group, me, 0, id, 'JUSTID')
  else
    gone[#gone + 1] = (at - 3) / 2
  end
end
return gone
