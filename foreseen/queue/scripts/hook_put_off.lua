if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
local clock = redis.call('TIME')
local due = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[3]
redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', due), ARGV[1])
if ARGV[4] == '1' then
  redis.call('HINCRBY', KEYS[3], 'hook:failed', 1)
else
  redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
end
return 1
