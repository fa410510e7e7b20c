local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local claimed = {}
for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])) do
  local job, nonce = string.sub(ticket, 1, ARGV[3]), string.sub(ticket, ARGV[3] + 1)
  local hook = redis.call('HGET', ARGV[4] .. job, 'h:' .. nonce)
  if hook then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ticket)
    claimed[#claimed + 1] = {job, nonce, hook, redis.call('HINCRBY', KEYS[2], ticket, 1)}
  else
    redis.call('ZREM', KEYS[1], ticket)
    redis.call('HDEL', KEYS[2], ticket)
  end
end
return claimed
