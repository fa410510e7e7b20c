"""Scripts of workers: a job is handed out, is alive, ends or is put back; messages of the dead are claimed."""

DURATIONS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper bounds of the histogram of how long jobs took, in seconds."""

CLAIM = """
local me, from, idle, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local ids = {}
if from == '' then
  for _, message in ipairs(redis.call('XAUTOCLAIM', QUEUE, GROUP, me, idle, '0-0', 'COUNT', most, 'JUSTID')[2]) do
    ids[#ids + 1] = message
  end
else
  for _, one in ipairs(redis.call('XPENDING', QUEUE, GROUP, '-', '+', most, from)) do
    redis.call('XCLAIM', QUEUE, GROUP, me, 0, one[1], 'JUSTID')
    ids[#ids + 1] = one[1]
  end
  if #ids == 0 and from ~= me then redis.call('XGROUP', 'DELCONSUMER', QUEUE, GROUP, from) end
end
local found = {}
for _, message in ipairs(ids) do
  local entry = redis.call('XRANGE', QUEUE, message, message)[1]
  if entry then
    found[#found + 1] = {message, entry[2]}
  else
    redis.call('XACK', QUEUE, GROUP, message)
  end
end
return found
"""
"""worker, a worker that has certainly ended (empty: anybody who is silent), ms of silence, how many at most → messages
and jobs that are now the worker's own. In one script: of two that claim from the same dead one, one gets a message."""

BEGIN = """
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
"""
"""worker, who else may be aboard (many, few, alone: nobody), deaths alone that make poison, then message and job of
each → of each: verdict (run; few, alone: only in such company; poison; gone), message, job, attempts, head, rows."""

BEAT = """
local me, lost = ARGV[1], {}
for i = 2, #ARGV, 3 do
  local message, id, done = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local s, o, d = unpack(redis.call('HMGET', at(id), 's', 'o', 'd'))
  if open(s) and o == me then
    redis.call('XCLAIM', QUEUE, GROUP, me, 0, message, 'JUSTID')
    if done ~= d then
      redis.call('HSET', at(id), 'd', done)
      told(id)
    end
  else
    lost[#lost + 1] = id
  end
end
return lost
"""
"""worker, then message, job and rows done of each that it has → jobs that are not its own any more."""

FINISH = """
local me, keep_ms, dead_ms, ended = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 0
for i = 4, #ARGV, 7 do
  local message, id, to, record, fresh, size, letter = unpack(ARGV, i, i + 6)
  local k = at(id)
  local s, o, c, n = unpack(redis.call('HMGET', k, 's', 'o', 'c', 'n'))
  if not open(s) then
    take_off(message)
  elseif to == 'succeeded' or o == me then
    redis.call('HSET', k, 'r', record, 'u', fresh)
    if to == 'succeeded' then
      redis.call('HSET', k, 'd', n)
      local took, bound = (now - tonumber(c)) / 1000, 'inf'
      for _, one in ipairs({DURATIONS}) do
        if took <= one then bound = tostring(one) break end
      end
      count('took:' .. bound, 1)
      count('took_ms', now - tonumber(c))
    end
    if letter == '' then
      redis.call('HDEL', k, 'q')
      shrink(id, tonumber(size))
      finish(id, s, to, keep_ms)
    else
      redis.call('HSET', DEAD, id, letter)
      finish(id, s, to, math.max(keep_ms, dead_ms))
    end
    ended = ended + 1
  end
end
return ended
""".replace("DURATIONS", ", ".join(f"{one:g}" for one in DURATIONS))
"""worker, ms that a result and a dead letter are kept, then of each: message, job, state, record of its end, fresh
until (ms), bytes, dead letter (empty: none) → how many ended by it. Failures count from the job's own worker only."""

BACK = """
local me = ARGV[1]
for i = 2, #ARGV, 5 do
  local message, id, delay, tried, suspect = unpack(ARGV, i, i + 4)
  local k = at(id)
  local s, o = unpack(redis.call('HMGET', k, 's', 'o'))
  if not open(s) then
    take_off(message)
  elseif o == me then
    take_off(message)
    redis.call('HSET', k, 'm', '', 'w', '', 'o', '')
    if tried == '1' then redis.call('HINCRBY', k, 'a', 1) end
    if suspect == '1' then redis.call('HSET', k, 'x', 2) end
    if tonumber(delay) > 0 then
      redis.call('ZADD', LATER, whole(now + tonumber(delay)), id)
    else
      enqueue(id)
    end
    move(id, s, 'queued')
  end
end
"""
"""worker, then of each: message, job, delay in ms, "1" if it counts as an attempt, "1" if it is to run alone."""

TICK = """
sweep(100, tonumber(ARGV[1]), tonumber(ARGV[2]))
local due = redis.call('ZRANGEBYSCORE', LATER, '-inf', whole(now), 'LIMIT', 0, 500)
for _, id in ipairs(due) do
  redis.call('ZREM', LATER, id)
  local s, m = unpack(redis.call('HMGET', at(id), 's', 'm'))
  if s == 'queued' and m == '' then enqueue(id) end
end
return #due
"""
"""longest life of a job and of a result in ms: forget what is over, queue what is due → how many were due."""

LEAVE = """
local me = ARGV[1]
for _, one in ipairs(redis.call('XPENDING', QUEUE, GROUP, '-', '+', 10000, me)) do
  local entry = redis.call('XRANGE', QUEUE, one[1], one[1])[1]
  local id = entry and entry[2][2]
  local s, m = false, false
  if id then s, m = unpack(redis.call('HMGET', at(id), 's', 'm')) end
  take_off(one[1])
  if open(s) and m == one[1] then
    redis.call('HSET', at(id), 'w', '', 'o', '')
    enqueue(id)
    move(id, s, 'queued')
  end
end
redis.call('XGROUP', 'DELCONSUMER', QUEUE, GROUP, me)
"""
"""A worker that has nothing aboard: what it was handed goes back, and nobody waits for it."""
