-- longest life of a job and of a result in ms: forget what is over, queue what is due → how many were due.
sweep(100, tonumber(ARGV[1]), tonumber(ARGV[2]))
local due = redis.call('ZRANGEBYSCORE', LATER, '-inf', whole(now), 'LIMIT', 0, 500)
for _, id in ipairs(due) do
  redis.call('ZREM', LATER, id)
  local s, m = unpack(redis.call('HMGET', at(id), 's', 'm'))
  if s == 'queued' and m == '' then enqueue(id) end
end
return #due
