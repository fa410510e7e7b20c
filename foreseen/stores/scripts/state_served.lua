local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000000 + t[2])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now .. ' ' .. ARGV[i + 1]) end
if redis.call('HLEN', KEYS[1]) <= tonumber(ARGV[1]) then return end
local all, by_age = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do by_age[#by_age + 1] = {tonumber(string.match(all[i + 1], '^%d+')), all[i]} end
table.sort(by_age, function(a, b) return a[1] < b[1] end)
for i = 1, #by_age - tonumber(ARGV[1]) do redis.call('HDEL', KEYS[1], by_age[i][2]) end
