-- same (empty: none), new id, nonce, head, rows, ticket, number of rows, bytes to reserve, most jobs, most bytes,
-- longest life of a job and of a result in ms; each empty for none: the ticket's webhook, its batch, the name of its
-- idempotency key, fingerprint of the request, its caller; how many times what is free a caller may have (0: no bound) →
-- {job, its state, head, nonce}, or {"", why not: jobs, bytes, share, reused}.
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
      queue_webhook(known, nonce)
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
