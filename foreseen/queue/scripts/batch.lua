-- new id, nonce, head, ticket, number of items; most bytes, longest life of a job and of a result in ms; each empty for
-- none: webhook, idempotency key's name, fingerprint, caller; weight → as `submit`. The batch is open until it is closed.
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
