#!lua flags=allow-oom
-- Takes for one reader what is not new: what came back, what others had out too long, what its time has come for. What a
-- process had out that has ended, or hangs, is suspect: it may be what ended it. While there is any, nothing else is taken;
-- it is taken alone.
-- KEYS[1]: the place. ARGV: group, ending of its own keys, reader, how many at most, 1 where it may take a suspect, lease in
-- ms, beginning of the names of readers of this engine, beginning of those of this run, how many streams, these. Answers
-- {now, when the next is due or -1, last id of the bell, how many wait for their time, when that was, deliveries: {stream,
-- count, id, fields, what went wrong before}, 0 or 1: there are suspects or 2: one of them was taken}.
local base, group, side, me = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local room, may, lease, engine, run, streams = tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7], ARGV[8], tonumber(ARGV[9])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local due, tries, taken = base .. ':due' .. side, base .. ':tries' .. side, {}

local function take(stream, id, count)
  local key = base .. ':' .. stream
  local entry = redis.call('XCLAIM', key, group, me, 0, id)
  if entry[1] and entry[1][2] then
    taken[#taken + 1] = {stream, count + 1, id, entry[1][2], redis.call('HGET', tries, stream .. '/' .. id) or ''}
    room = room - 1
    return true
  end
  redis.call('XACK', key, group, id)
  return false
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 500)) do
  local stream, id = string.match(name, '([^/]+)/(.+)')
  local row = redis.pcall('XPENDING', base .. ':' .. stream, group, id, id, 1, 'later')
  if not row.err and row[1] then
    redis.call('XCLAIM', base .. ':' .. stream, group, 'returned', 0, id, 'RETRYCOUNT', row[1][4], 'JUSTID')
  end
  redis.call('ZREM', due, name)
end

local suspects, back = 0, {}
for n = 1, streams do
  local stream = ARGV[9 + n]
  local key = base .. ':' .. stream
  local pending = redis.pcall('XPENDING', key, group)
  if not pending.err and pending[1] > 0 then
    for _, one in ipairs(pending[4]) do
      local owner = one[1]
      if owner == 'returned' then
        back[#back + 1] = {stream, owner, 0}
      elseif string.sub(owner, 1, #run) == run then
        -- Another reader of this very process, which has not ended.
        if owner ~= me then back[#back + 1] = {stream, owner, lease} end
      elseif owner ~= 'later' and suspects == 0 then
        -- Another run of this engine has ended: there is one at a time.
        local is_gone = engine ~= '' and string.sub(owner, 1, #engine) == engine
        local row = redis.call('XPENDING', key, group, 'IDLE', is_gone and 0 or lease, '-', '+', 1, owner)[1]
        if row then
          suspects = 1
          if may and room > 0 then
            if take(stream, row[1], row[4]) then suspects = 2 end
            if #redis.call('XPENDING', key, group, '-', '+', 1, owner) == 0 then
              redis.call('XGROUP', 'DELCONSUMER', key, group, owner)
            end
          end
        end
      end
    end
  end
end
if suspects == 0 then
  for _, from in ipairs(back) do
    local stream, owner, idle = from[1], from[2], from[3]
    if room > 0 then
      for _, row in ipairs(redis.call('XPENDING', base .. ':' .. stream, group, 'IDLE', idle, '-', '+', room, owner)) do
        take(stream, row[1], row[4])
      end
    end
  end
end

local next_due = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
local bell = redis.call('XREVRANGE', base .. ':bell', '+', '-', 'COUNT', 1)
return {now, next_due[2] and tonumber(next_due[2]) or -1, bell[1] and bell[1][1] or '0-0', redis.call('ZCARD', due), tonumber(clock[1]) * 1000000 + tonumber(clock[2]), taken, suspects}
