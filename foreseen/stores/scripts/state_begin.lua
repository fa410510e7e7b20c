local seen = tonumber(ARGV[1])
if last == 0 or last < seen then purge('all', '', math.max(last, seen)) end
return redis.call('HGETALL', KEYS[1])
