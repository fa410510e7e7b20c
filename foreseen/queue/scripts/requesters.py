"""Scripts of those who ask, and of operators: a job begins, is given up, or is put back into the queue."""

SUBMIT = """
local same, id, nonce, head, rows, ticket, n = unpack(ARGV, 1, 7)
local size, most_jobs, most_bytes, job_ms, keep_ms, hook, batch, once, print, caller, weight = unpack(ARGV, 8, 18)
weight = tonumber(weight)
sweep(16, tonumber(job_ms), tonumber(keep_ms))
local before = used(once, print)
if before then return before end
local room = tonumber(most_bytes) - tonumber(redis.call('HGET', COUNTS, 'bytes') or '0')
local taken = #ticket + #hook + #batch + #once + 64
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
  redis.call('HINCRBY', k, 'tb', taken)
  resize(id, tonumber(redis.call('HGET', k, 'sz')) + taken)
  local owner = redis.call('HGET', k, 'by')
  if caller ~= '' and owner ~= caller then
    charge(owner, 'b', -taken)
    charge(caller, 'b', taken)
    if redis.call('HINCRBY', k, 'b:' .. caller, taken) == taken then append(id, 'cs', caller) end
  end
end
if room < #ticket + #hook + 64 then return {'', 'bytes', '', ''} end
if not has_share(caller, 'b', taken, room, weight) then return {'', 'share', '', ''} end
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
local places = tonumber(most_jobs) - redis.call('ZCARD', OPEN)
if places < 1 then return {'', 'jobs', '', ''} end
if not (has_share(caller, 'b', size + taken, room, weight) and has_share(caller, 'j', 1, places, weight)) then
  return {'', 'share', '', ''}
end
if caller ~= '' then redis.call('HSET', at(id), 'by', caller) end
charge(caller, 'j', 1)
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
idempotency key, fingerprint of the request, its caller; how many times what is free a caller may have (0: no bound) →
{job, its state, head, nonce}, or {"", why not: jobs, bytes, share, reused}."""

BATCH = """
local id, nonce, head, ticket, n = unpack(ARGV, 1, 5)
local most_bytes, job_ms, keep_ms, hook, once, print, caller, weight = unpack(ARGV, 6, 13)
sweep(16, tonumber(job_ms), tonumber(keep_ms))
local before = used(once, print)
if before then return before end
local room = tonumber(most_bytes) - tonumber(redis.call('HGET', COUNTS, 'bytes') or '0')
if room < 1024 then return {'', 'bytes', '', ''} end
if not has_share(caller, 'b', 1024, room, tonumber(weight)) then return {'', 'share', '', ''} end
local k = at(id)
if caller ~= '' then redis.call('HSET', k, 'by', caller) end
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
none: webhook, idempotency key's name, fingerprint, caller; weight → as `submit`. The batch is open until it is closed
(`close`)."""

CLOSE = """
local id, record, bad = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HGET', at(id), 's') ~= 'running' then return 0 end
redis.call('HSET', at(id), 'r', record)
resize(id, tonumber(redis.call('HGET', at(id), 'sz')) + #record)
credit(id, bad, bad)
return 1
"""
"""batch, the record of all its items, how many of them are no jobs → 1, or 0 where it has ended meanwhile."""

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
    told(id, true)
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
