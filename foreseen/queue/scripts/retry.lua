-- A dead letter → back into the queue, as if it had never run; 1, or 0 where it cannot be.
local id = ARGV[1]
local s, q = unpack(redis.call('HMGET', at(id), 's', 'q'))
if s ~= 'failed' or not q or redis.call('HEXISTS', DEAD, id) == 0 then return 0 end
redis.call('HDEL', DEAD, id)
redis.call('ZREM', ENDS, id)
redis.call('HDEL', at(id), 'x', 'y', 'a', 'r', 'e', 'b')
redis.call('HSET', at(id), 'd', 0)
redis.call('ZADD', OPEN, whole(now), id)
count('ended:failed', -1)
enqueue(id)
move(id, s, 'queued')
return 1
