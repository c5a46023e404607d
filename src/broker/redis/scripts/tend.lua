#!lua flags=allow-oom
-- Takes for one reader what is not new: what came back, what others had out too long, what its time has come for.
-- KEYS[1]: the place. ARGV: group, ending of its own keys, reader, how many at most, lease in ms, beginning of the names of
-- readers of this engine, beginning of those of this run, how many streams, these. Answers {now, when the next is due or -1, last id of the bell, how many wait for their
-- time, when that was, deliveries: {stream, count, id, fields, what went wrong before}}.
local base, group, side, me = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local room, lease, engine, run, streams = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7], tonumber(ARGV[8])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local due, tries, taken = base .. ':due' .. side, base .. ':tries' .. side, {}

local function take(stream, id, count)
  local key = base .. ':' .. stream
  local entry = redis.call('XCLAIM', key, group, me, 0, id)
  if entry[1] and entry[1][2] then
    taken[#taken + 1] = {stream, count + 1, id, entry[1][2], redis.call('HGET', tries, stream .. '/' .. id) or ''}
    room = room - 1
  else
    redis.call('XACK', key, group, id)
  end
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 500)) do
  local stream, id = string.match(name, '([^/]+)/(.+)')
  local row = redis.pcall('XPENDING', base .. ':' .. stream, group, id, id, 1, 'later')
  if not row.err and row[1] then
    redis.call('XCLAIM', base .. ':' .. stream, group, 'returned', 0, id, 'RETRYCOUNT', row[1][4], 'JUSTID')
  end
  redis.call('ZREM', due, name)
end

for n = 1, streams do
  local stream = ARGV[8 + n]
  local key = base .. ':' .. stream
  local pending = redis.pcall('XPENDING', key, group)
  if not pending.err and pending[1] > 0 then
    for _, one in ipairs(pending[4]) do
      local owner = one[1]
      if room > 0 and owner == 'returned' then
        for _, row in ipairs(redis.call('XPENDING', key, group, '-', '+', room, owner)) do
          take(stream, row[1], row[4])
        end
      elseif room > 0 and owner ~= 'later' and owner ~= me then
        -- Another run of this engine has ended: there is one at a time.
        local is_gone = engine ~= '' and string.sub(owner, 1, #engine) == engine and string.sub(owner, 1, #run) ~= run
        local idle = is_gone and 0 or lease
        for _, row in ipairs(redis.call('XPENDING', key, group, 'IDLE', idle, '-', '+', room, owner)) do
          take(stream, row[1], row[4])
        end
        if is_gone and #redis.call('XPENDING', key, group, '-', '+', 1, owner) == 0 then
          redis.call('XGROUP', 'DELCONSUMER', key, group, owner)
        end
      end
    end
  end
end

local next_due = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
local bell = redis.call('XREVRANGE', base .. ':bell', '+', '-', 'COUNT', 1)
return {now, next_due[2] and tonumber(next_due[2]) or -1, bell[1] and bell[1][1] or '0-0', redis.call('ZCARD', due), tonumber(clock[1]) * 1000000 + tonumber(clock[2]), taken}
