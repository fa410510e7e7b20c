-- job, nonce, ms that it is remembered → 1, or 0 where there is no such ticket. The job goes with its last ticket.
local id, nonce, keep_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local k = at(id)
if redis.call('HEXISTS', k, 't:' .. nonce) == 0 then return 0 end
local s = redis.call('HGET', k, 's')
if open(s) and redis.call('HSETNX', k, 'c:' .. nonce, whole(now)) == 1 then
  queue_webhook(id, nonce)
  if redis.call('HEXISTS', k, 'kp') == 1 then
    end_batch(id, 'cancelled')
  elseif redis.call('HINCRBY', k, 't', -1) == 0 then
    redis.call('HDEL', k, 'q')
    finish(id, s, 'cancelled', keep_ms)
    shrink(id, 512)
  else
    publish_change(id, true)
  end
end
return 1
