-- worker, then of each: message, job, delay in ms, "1" if it counts as an attempt, "1" if it is to run alone.
local me = ARGV[1]
for i = 2, #ARGV, 5 do
  local message, id, delay, tried, suspect = unpack(ARGV, i, i + 4)
  local k = at(id)
  local s, o = unpack(redis.call('HMGET', k, 's', 'o'))
  if not open(s) then
    take_off(message)
  elseif o == me then
    take_off(message)
    redis.call('HSET', k, 'm', '', 'w', '', 'o', '')
    if tried == '1' then redis.call('HINCRBY', k, 'a', 1) end
    if suspect == '1' then redis.call('HSET', k, 'x', 2) end
    if tonumber(delay) > 0 then
      redis.call('ZADD', LATER, whole(now + tonumber(delay)), id)
    else
      enqueue(id)
    end
    move(id, s, 'queued')
  end
end
