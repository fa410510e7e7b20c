-- What all scripts of the queue share: the names of keys, and a job's steps from one state to the next.
local base = KEYS[1]
local QUEUE, LATER, OPEN, ENDS = base .. '.queue', base .. '.later', base .. '.open', base .. '.ends'
local DEAD, COUNTS, NEWS, GROUP = base .. '.dead', base .. '.counts', base .. '.news', 'workers'
local HOOKS, BATCHES, ONCE = base .. '.hooks', base .. '.batches', base .. '.once:'
local CALLERS = base .. '.callers'
local NONCE, JOB, NAME = NONCE_BYTES, JOB_BYTES, NAME_BYTES
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local function at(id) return base .. '.job:' .. id end
local function count(what, by) redis.call('HINCRBY', COUNTS, what, whole(by)) end
local function open(state) return state == 'queued' or state == 'running' end
local function charge(caller, what, by)
  if not caller or caller == '' or by == 0 then return end
  if redis.call('HINCRBY', CALLERS, what .. caller, whole(by)) <= 0 then
    redis.call('HDEL', CALLERS, what .. caller)
  end
end
local function has_share(caller, what, extra, free, weight)
  if caller == '' or weight == 0 then return true end
  local has = tonumber(redis.call('HGET', CALLERS, what .. caller) or '0')
  return has + extra <= weight * (free - extra)
end
local function publish_change(id, over)
  redis.call('HINCRBY', at(id), 'v', 1)
  redis.call('PUBLISH', NEWS, over and id or id .. '+')
end
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
    if open(from) ~= open(to) then charge(redis.call('HGET', at(id), 'by'), 'j', open(to) and 1 or -1) end
    publish_change(id, not open(to))
  end
end
local function resize(id, size)
  local before, owner = unpack(redis.call('HMGET', at(id), 'sz', 'by'))
  before = tonumber(before or '0')
  redis.call('HSET', at(id), 'sz', whole(size))
  count('bytes', size - before)
  charge(owner, 'b', size - before)
end
local function queue_webhook(id, nonce)
  if redis.call('HEXISTS', at(id), 'h:' .. nonce) == 1 then redis.call('ZADD', HOOKS, whole(now), id .. nonce) end
end
local function each(id, field, size, action)
  local listed = redis.call('HGET', at(id), field) or ''
  for i = 1, #listed, size do action(string.sub(listed, i, i + size - 1)) end
end
local function append(id, field, one)
  redis.call('HSET', at(id), field, (redis.call('HGET', at(id), field) or '') .. one)
end
local function queue_webhooks(id)
  each(id, 'hs', NONCE, function(nonce)
    if redis.call('HEXISTS', at(id), 'c:' .. nonce) == 0 then queue_webhook(id, nonce) end
  end)
end
local function end_batch(id, to)
  local z = whole(now + tonumber(redis.call('HGET', at(id), 'kp')))
  redis.call('HSET', at(id), 's', to, 'e', whole(now), 'z', z)
  redis.call('ZREM', BATCHES, id)
  redis.call('ZADD', ENDS, z, id)
  publish_change(id, true)
  queue_webhooks(id)
end
local function credit(id, by, bad)
  local k = at(id)
  if redis.call('HGET', k, 's') ~= 'running' then return end
  if bad > 0 then redis.call('HINCRBY', k, 'nb', whole(bad)) end
  local d, n = redis.call('HINCRBY', k, 'd', whole(by)), tonumber(redis.call('HGET', k, 'n'))
  if d >= n and redis.call('HEXISTS', k, 'r') == 1 then
    end_batch(id, 'succeeded')
  elseif d % math.ceil(n / 100) == 0 then
    publish_change(id)
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
  queue_webhooks(id)
  each(id, 'ps', JOB, function(batch) credit(batch, 1, to == 'succeeded' and 0 or 1) end)
end
local function forget(id)
  local k = at(id)
  local known = redis.call('HMGET', k, 's', 'same')
  if known[1] then
    each(id, 'cs', NAME, function(caller)
      local taken = tonumber(redis.call('HGET', k, 'b:' .. caller))
      charge(caller, 'b', -taken)
      charge(redis.call('HGET', k, 'by'), 'b', taken)
    end)
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
  if redis.call('EXISTS', OPEN, BATCHES, ENDS) == 0 then redis.call('DEL', CALLERS) end
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
