-- batch, the record of all its items, how many of them are no jobs → 1, or 0 where it has ended meanwhile.
local id, record, bad = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HGET', at(id), 's') ~= 'running' then return 0 end
redis.call('HSET', at(id), 'r', record)
resize(id, tonumber(redis.call('HGET', at(id), 'sz')) + #record)
credit(id, bad, bad)
return 1
