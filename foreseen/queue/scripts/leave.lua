-- Remove a worker that has no running job: jobs delivered to it return to the queue.
local me = ARGV[1]
for _, one in ipairs(redis.call('XPENDING', QUEUE, GROUP, '-', '+', 10000, me)) do
  local entry = redis.call('XRANGE', QUEUE, one[1], one[1])[1]
  local id = entry and entry[2][2]
  local s, m = false, false
  if id then s, m = unpack(redis.call('HMGET', at(id), 's', 'm')) end
  take_off(one[1])
  if open(s) and m == one[1] then
    redis.call('HSET', at(id), 'w', '', 'o', '')
    enqueue(id)
    move(id, s, 'queued')
  end
end
redis.call('XGROUP', 'DELCONSUMER', QUEUE, GROUP, me)
