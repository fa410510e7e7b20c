-- run, its JSON, "1" if it is over, the rows by result that were reported before, as far as the run knows.
local run, report, over = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local at = tonumber(redis.call('TIME')[1])
local known = redis.call('HGET', KEYS[1], run)
local before = known and cjson.decode(known).rows or cjson.decode(ARGV[4])
for i, result in ipairs({'hit', 'computed', 'imported', 'failed'}) do
  local more = report.rows[i] - before[i]
  if more > 0 then redis.call('HINCRBY', KEYS[2], result .. ':' .. report.model, string.format('%.0f', more)) end
end
redis.call('PEXPIRE', KEYS[2], '2592000000')
report.at = at
redis.call('HSET', KEYS[1], run, cjson.encode(report))
if over == '1' then redis.call('HDEL', KEYS[1], run) end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if cjson.decode(all[i + 1]).at < at - 60 then redis.call('HDEL', KEYS[1], all[i]) end
end
redis.call('PEXPIRE', KEYS[1], '60000')
return 1
