"""A job's way through the queue as scripts, each of them atomic: what is written of a job and of the queue agrees.

    {fsj1}.job:ID      hash     a job: s state, head, q rows, r record of its end; n rows, d done; c created, b begun,
                                e ended (Unix ms); v version, one more with every change; t tickets that want it;
                                t:NONCE a ticket, c:NONCE when it was cancelled (Unix ms), h:NONCE its webhook, hs
                                the nonces of tickets with one; ps the batches it is in; is its idempotency keys;
                                m its message; o whose it is, w how it is aboard (m among many, a alone); x deaths of
                                workers with it aboard, y of such alone, a attempts; sz bytes, tb those of tickets;
                                u fresh until, z kept until (Unix ms); same. A batch is such a hash, too: n items, d
                                ended, nb of them without an answer, r the list of them, kp how long its result is
                                kept (ms)
    {fsj1}.same:SAME   string   the job of a question
    {fsj1}.queue       stream   j the job, n its rows, b their bytes; group `workers`
    {fsj1}.later       zset     jobs that were put back → when they are due
    {fsj1}.open        zset     jobs that have not ended → when they were created
    {fsj1}.ends        zset     jobs that have ended → when they are forgotten
    {fsj1}.hooks       zset     tickets that have ended and have a webhook → when it is due (see `outbox.py`)
    {fsj1}.once:NAME   string   an idempotency key → fingerprint of its request ‖ job ‖ nonce; goes with its job
    {fsj1}.batches     zset     batches that have not ended → when they were created
    {fsj1}.dead        hash     dead letters: job → what happened
    {fsj1}.counts      hash     what metrics tell: state:*, ended:*, submitted, redelivered, bytes, took:*
    {fsj1}.news        channel  jobs that have changed

All keys lie in one slot of a Cluster, by their hash tag; scripts make the names of jobs' keys themselves. A job ends in
one place, `finish`, and only from queued or running. Times are the server's own.
"""

from __future__ import annotations

from foreseen.records import JOB_BYTES, NAME_BYTES, NONCE_BYTES

BASE = "{fsj1}"
GROUP = "workers"
DURATIONS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper bounds of the histogram of how long jobs took, in seconds."""

_COMMON = """
local base = KEYS[1]
local QUEUE, LATER, OPEN, ENDS = base .. '.queue', base .. '.later', base .. '.open', base .. '.ends'
local DEAD, COUNTS, NEWS, GROUP = base .. '.dead', base .. '.counts', base .. '.news', 'workers'
local HOOKS, BATCHES, ONCE = base .. '.hooks', base .. '.batches', base .. '.once:'
local NONCE, JOB, NAME = NONCE_BYTES, JOB_BYTES, NAME_BYTES
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local function at(id) return base .. '.job:' .. id end
local function count(what, by) redis.call('HINCRBY', COUNTS, what, whole(by)) end
local function told(id)
  redis.call('HINCRBY', at(id), 'v', 1)
  redis.call('PUBLISH', NEWS, id)
end
local function open(state) return state == 'queued' or state == 'running' end
local function take_off(message)
  if message and message ~= '' then
    redis.call('XACK', QUEUE, GROUP, message)
    redis.call('XDEL', QUEUE, message)
  end
end
local function enqueue(id)
  local k = at(id)
  local n, bytes = redis.call('HGET', k, 'n'), redis.call('HSTRLEN', k, 'q')
  redis.call('HSET', k, 'm', redis.call('XADD', QUEUE, '*', 'j', id, 'n', n, 'b', bytes))
end
local function move(id, from, to)
  if from ~= to then
    count('state:' .. from, -1)
    count('state:' .. to, 1)
    redis.call('HSET', at(id), 's', to)
    told(id)
  end
end
local function resize(id, size)
  local before = tonumber(redis.call('HGET', at(id), 'sz') or '0')
  redis.call('HSET', at(id), 'sz', whole(size))
  count('bytes', size - before)
end
local function tell(id, nonce)
  if redis.call('HEXISTS', at(id), 'h:' .. nonce) == 1 then redis.call('ZADD', HOOKS, whole(now), id .. nonce) end
end
local function each(id, field, size, visit)
  local listed = redis.call('HGET', at(id), field) or ''
  for i = 1, #listed, size do visit(string.sub(listed, i, i + size - 1)) end
end
local function append(id, field, one)
  redis.call('HSET', at(id), field, (redis.call('HGET', at(id), field) or '') .. one)
end
local function tell_all(id)
  each(id, 'hs', NONCE, function(nonce)
    if redis.call('HEXISTS', at(id), 'c:' .. nonce) == 0 then tell(id, nonce) end
  end)
end
local function end_batch(id, to)
  local z = whole(now + tonumber(redis.call('HGET', at(id), 'kp')))
  redis.call('HSET', at(id), 's', to, 'e', whole(now), 'z', z)
  redis.call('ZREM', BATCHES, id)
  redis.call('ZADD', ENDS, z, id)
  told(id)
  tell_all(id)
end
local function credit(id, by, bad)
  local k = at(id)
  if redis.call('HGET', k, 's') ~= 'running' then return end
  if bad > 0 then redis.call('HINCRBY', k, 'nb', whole(bad)) end
  local d, n = redis.call('HINCRBY', k, 'd', whole(by)), tonumber(redis.call('HGET', k, 'n'))
  if d >= n and redis.call('HEXISTS', k, 'r') == 1 then
    end_batch(id, 'succeeded')
  elseif d % math.ceil(n / 100) == 0 then
    told(id)
  end
end
local function shrink(id, size)
  resize(id, size + tonumber(redis.call('HGET', at(id), 'tb') or '0'))
end
local function finish(id, from, to, keep_ms)
  local k = at(id)
  take_off(redis.call('HGET', k, 'm'))
  redis.call('HSET', k, 'e', whole(now), 'm', '', 'w', '', 'o', '', 'z', whole(now + keep_ms))
  redis.call('ZREM', OPEN, id)
  redis.call('ZREM', LATER, id)
  redis.call('ZADD', ENDS, whole(now + keep_ms), id)
  count('ended:' .. to, 1)
  move(id, from, to)
  tell_all(id)
  each(id, 'ps', JOB, function(batch) credit(batch, 1, to == 'succeeded' and 0 or 1) end)
end
local function forget(id)
  local k = at(id)
  local known = redis.call('HMGET', k, 's', 'same')
  if known[1] then
    resize(id, 0)
    each(id, 'is', NAME, function(name) redis.call('DEL', ONCE .. name) end)
    if redis.call('HEXISTS', k, 'kp') == 0 then count('state:' .. known[1], -1) end
    if known[2] and redis.call('GET', base .. '.same:' .. known[2]) == id then
      redis.call('DEL', base .. '.same:' .. known[2])
    end
    redis.call('DEL', k)
  end
  redis.call('ZREM', ENDS, id)
  redis.call('HDEL', DEAD, id)
end
local function sweep(most, job_ms, keep_ms)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', OPEN, '-inf', whole(now - job_ms), 'LIMIT', 0, most)) do
    local state = redis.call('HGET', at(id), 's')
    if open(state) then
      redis.call('HDEL', at(id), 'q')
      shrink(id, 512)
      finish(id, state, 'expired', keep_ms)
    else
      redis.call('ZREM', OPEN, id)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', BATCHES, '-inf', whole(now - job_ms), 'LIMIT', 0, most)) do
    end_batch(id, 'expired')
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ENDS, '-inf', whole(now), 'LIMIT', 0, most)) do
    local wanted = false
    each(id, 'ps', JOB, function(batch) wanted = wanted or redis.call('EXISTS', at(batch)) == 1 end)
    if wanted then
      redis.call('ZADD', ENDS, whole(now + 60000), id)
    else
      forget(id)
    end
  end
end
local function used(once, print)
  local held = once ~= '' and redis.call('GET', ONCE .. once)
  if not held then return nil end
  local id, nonce = string.sub(held, #held - JOB - NONCE + 1, #held - NONCE), string.sub(held, #held - NONCE + 1)
  local s, head, ticket = unpack(redis.call('HMGET', at(id), 's', 'head', 't:' .. nonce))
  if not ticket then return nil end
  if string.sub(held, 1, #held - JOB - NONCE) ~= print then return {'', 'reused', '', ''} end
  return {id, s, head, nonce}
end
local function use(once, print, id, nonce, life_ms)
  if once == '' then return end
  redis.call('SET', ONCE .. once, print .. id .. nonce, 'PX', whole(life_ms))
  append(id, 'is', once)
end
"""

SUBMIT = """
local same, id, nonce, head, rows, ticket, n = unpack(ARGV, 1, 7)
local size, most_jobs, most_bytes, job_ms, keep_ms, hook, batch, once, print = unpack(ARGV, 8, 16)
sweep(16, tonumber(job_ms), tonumber(keep_ms))
local before = used(once, print)
if before then return before end
local room = tonumber(most_bytes) - tonumber(redis.call('HGET', COUNTS, 'bytes') or '0')
local function hand_out(id)
  local k = at(id)
  redis.call('HSET', k, 't:' .. nonce, ticket)
  redis.call('HINCRBY', k, 't', 1)
  if hook ~= '' then
    redis.call('HSET', k, 'h:' .. nonce, hook)
    append(id, 'hs', nonce)
  end
  if batch ~= '' then append(id, 'ps', batch) end
  use(once, print, id, nonce, job_ms + keep_ms)
  local taken = #ticket + #hook + #batch + #once + 64
  redis.call('HINCRBY', k, 'tb', taken)
  resize(id, tonumber(redis.call('HGET', k, 'sz')) + taken)
end
if room < #ticket + #hook + 64 then return {'', 'bytes', '', ''} end
local known = same ~= '' and redis.call('GET', base .. '.same:' .. same)
if known then
  local state, fresh, its = unpack(redis.call('HMGET', at(known), 's', 'u', 'head'))
  if open(state) or (state == 'succeeded' and tonumber(fresh or '0') > now) then
    hand_out(known)
    if not open(state) then
      redis.call('HSET', at(known), 'z', whole(now + keep_ms))
      redis.call('ZADD', ENDS, whole(now + keep_ms), known)
      tell(known, nonce)
      if batch ~= '' then credit(batch, 1, 0) end
    end
    count('joined', 1)
    return {known, state, its, nonce}
  end
end
if room < tonumber(size) then return {'', 'bytes', '', ''} end
if redis.call('ZCARD', OPEN) >= tonumber(most_jobs) then return {'', 'jobs', '', ''} end
redis.call('HSET', at(id), 's', 'queued', 'head', head, 'q', rows, 'n', n, 'd', 0, 'c', whole(now), 'v', 1, 't', 0,
  'sz', 0, 'same', same)
resize(id, tonumber(size))
hand_out(id)
redis.call('ZADD', OPEN, whole(now), id)
if same ~= '' then redis.call('SET', base .. '.same:' .. same, id) end
count('state:queued', 1)
count('submitted', 1)
enqueue(id)
return {id, 'queued', head, nonce}
"""
"""same (empty: none), new id, nonce, head, rows, ticket, number of rows, bytes to reserve, most jobs, most bytes,
longest life of a job and of a result in ms; each empty for none: the ticket's webhook, its batch, the name of its
idempotency key, fingerprint of the request → {job, its state, head, nonce}, or {"", why not: jobs, bytes, reused}."""

BATCH = """
local id, nonce, head, ticket, n = unpack(ARGV, 1, 5)
local most_bytes, job_ms, keep_ms, hook, once, print = unpack(ARGV, 6, 11)
sweep(16, tonumber(job_ms), tonumber(keep_ms))
local before = used(once, print)
if before then return before end
local bytes = tonumber(redis.call('HGET', COUNTS, 'bytes') or '0')
if tonumber(most_bytes) - bytes < 1024 then return {'', 'bytes', '', ''} end
local k = at(id)
redis.call('HSET', k, 's', 'running', 'head', head, 'n', n, 'd', 0, 'c', whole(now), 'b', whole(now), 'v', 1, 't', 1,
  'sz', 0, 'kp', keep_ms, 't:' .. nonce, ticket)
if hook ~= '' then redis.call('HSET', k, 'h:' .. nonce, hook, 'hs', nonce) end
use(once, print, id, nonce, job_ms + keep_ms)
resize(id, #head + #ticket + #hook + 512)
redis.call('ZADD', BATCHES, whole(now), id)
count('batches', 1)
return {id, 'running', head, nonce}
"""
"""new id, nonce, head, ticket, number of items; most bytes, longest life of a job and of a result in ms; each empty for
none: webhook, idempotency key's name, fingerprint → as `submit`. The batch is open until it is closed (`close`)."""

CLOSE = """
local id, record, bad = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HGET', at(id), 's') ~= 'running' then return 0 end
redis.call('HSET', at(id), 'r', record)
resize(id, tonumber(redis.call('HGET', at(id), 'sz')) + #record)
credit(id, bad, bad)
return 1
"""
"""batch, the record of all its items, how many of them are no jobs → 1, or 0 where it has ended meanwhile."""

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

CANCEL = """
local id, nonce, keep_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local k = at(id)
if redis.call('HEXISTS', k, 't:' .. nonce) == 0 then return 0 end
local s = redis.call('HGET', k, 's')
if open(s) and redis.call('HSETNX', k, 'c:' .. nonce, whole(now)) == 1 then
  tell(id, nonce)
  if redis.call('HEXISTS', k, 'kp') == 1 then
    end_batch(id, 'cancelled')
  elseif redis.call('HINCRBY', k, 't', -1) == 0 then
    redis.call('HDEL', k, 'q')
    finish(id, s, 'cancelled', keep_ms)
    shrink(id, 512)
  else
    told(id)
  end
end
return 1
"""
"""job, nonce, ms that it is remembered → 1, or 0 where there is no such ticket. The job goes with its last ticket."""

RETRY = """
local id = ARGV[1]
local s, q = unpack(redis.call('HMGET', at(id), 's', 'q'))
if s ~= 'failed' or not q or redis.call('HEXISTS', DEAD, id) == 0 then return 0 end
redis.call('HDEL', DEAD, id)
redis.call('ZREM', ENDS, id)
redis.call('HDEL', at(id), 'x', 'y', 'a', 'r', 'e', 'b')
redis.call('HSET', at(id), 'd', 0)
redis.call('ZADD', OPEN, whole(now), id)
count('ended:failed', -1)
enqueue(id)
move(id, s, 'queued')
return 1
"""
"""A dead letter → back into the queue, as if it had never run; 1, or 0 where it cannot be."""

_SIZED = (
    _COMMON.replace("NONCE_BYTES", str(NONCE_BYTES))
    .replace("JOB_BYTES", str(JOB_BYTES))
    .replace("NAME_BYTES", str(NAME_BYTES))
)
SCRIPTS = {
    name: _SIZED + body
    for name, body in {
        "submit": SUBMIT, "batch": BATCH, "close": CLOSE, "begin": BEGIN,
        "beat": BEAT, "finish": FINISH, "back": BACK, "tick": TICK,
        "claim": CLAIM, "leave": LEAVE, "cancel": CANCEL, "retry": RETRY,
    }.items()
}  # fmt: skip
