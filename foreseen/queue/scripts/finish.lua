-- worker, ms that a result and a dead letter are kept, then of each: message, job, state, record of its end, fresh
-- until (ms), bytes, dead letter (empty: none) → how many ended by it. Failures count from the job's own worker only.
local me, keep_ms, dead_ms, ended = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 0
for i = 4, #ARGV, 7 do
  local message, id, to, record, fresh, size, letter = unpack(ARGV, i, i + 6)
  local k = at(id)
  local s, o, c, n = unpack(redis.call('HMGET', k, 's', 'o', 'c', 'n'))
  if not open(s) then
    take_off(message)
  elseif to == 'succeeded' or o == me then
    redis.call('HSET', k, 'r', record, 'u', fresh)
    if to == 'succeeded' then
      redis.call('HSET', k, 'd', n)
      local took, bound = (now - tonumber(c)) / 1000, 'inf'
      for _, one in ipairs({DURATIONS}) do
        if took <= one then bound = tostring(one) break end
      end
      count('took:' .. bound, 1)
      count('took_ms', now - tonumber(c))
    end
    if letter == '' then
      redis.call('HDEL', k, 'q')
      shrink(id, tonumber(size))
      finish(id, s, to, keep_ms)
    else
      redis.call('HSET', DEAD, id, letter)
      finish(id, s, to, math.max(keep_ms, dead_ms))
    end
    ended = ended + 1
  end
end
return ended
