if redis.call('XLEN', KEYS[2]) < tonumber(ARGV[3]) then return purge(ARGV[1], ARGV[2], last) end
redis.call('DEL', KEYS[2])
return purge('all', '', last)
