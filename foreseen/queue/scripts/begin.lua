-- worker, which other jobs may run beside it (many, few, alone: none), deaths alone that make poison, then message and
-- job of each → of each: verdict (run; few, alone: only in such company; poison; gone), message, job, attempts, head,
-- rows.
local me, company, most_alone = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found = {}
for i = 4, #ARGV, 2 do
  local message, id = ARGV[i], ARGV[i + 1]
  local k, verdict = at(id), nil
  local s, m, w, o, x, y, a = unpack(redis.call('HMGET', k, 's', 'm', 'w', 'o', 'x', 'y', 'a'))
  x, y, a = tonumber(x or '0'), tonumber(y or '0'), tonumber(a or '0')
  if not open(s) or m ~= message then
    take_off(message)
    verdict = 'gone'
  else
    if s == 'running' and o ~= me and w and w ~= '' then
      count('redelivered', 1)
      if w == 'a' then y = y + 1 else x = x + 1 end
      redis.call('HSET', k, 'x', x, 'y', y)
    end
    redis.call('HSET', k, 'o', me, 'w', '')
    if y >= most_alone then
      verdict = 'poison'
    elseif (x >= 2 or y > 0) and company ~= 'alone' then
      verdict = 'alone'
    elseif x == 1 and company == 'many' then
      verdict = 'few'
    else
      verdict = 'run'
      redis.call('HSET', k, 'w', company == 'alone' and 'a' or 'm')
      redis.call('HSETNX', k, 'b', whole(now))
    end
    move(id, s, 'running')
  end
  local row = {verdict, message, id, a, '', ''}
  if verdict ~= 'gone' then row[5] = redis.call('HGET', k, 'head') end
  if verdict == 'run' then row[6] = redis.call('HGET', k, 'q') or '' end
  found[#found + 1] = row
end
return found
