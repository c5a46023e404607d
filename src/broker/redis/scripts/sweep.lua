#!lua flags=allow-oom
-- Forgets readers that ended without leaving: those that have nothing out and did nothing for long. KEYS[1]: the place. ARGV:
-- how long, in ms, then its streams. Answers how many.
local base, idle, gone = KEYS[1], tonumber(ARGV[1]), 0

local function named(rows)
  local all = {}
  for _, row in ipairs(rows) do
    local one = {}
    for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
    all[#all + 1] = one
  end
  return all
end

for at = 2, #ARGV do
  local key = base .. ':' .. ARGV[at]
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, group in ipairs(groups.err and {} or named(groups)) do
    for _, reader in ipairs(named(redis.call('XINFO', 'CONSUMERS', key, group['name']))) do
      if reader['pending'] == 0 and reader['idle'] >= idle then
        redis.call('XGROUP', 'DELCONSUMER', key, group['name'], reader['name'])
        gone = gone + 1
      end
    end
  end
end
return gone
