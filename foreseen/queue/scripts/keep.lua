-- name, most bytes of all, seconds, its caller (empty: none), how many times what is free a caller may have (0: no
-- bound), content → what is full: "" (nothing: it is kept), all, share.
local name, most, seconds, caller, weight, content = unpack(ARGV)
local LISTED, OWNERS = base .. '.blobs', base .. '.blobs.callers'
local free, has = tonumber(most), 0
local listed = redis.call('HGETALL', LISTED)
for i = 1, #listed, 2 do
  local size, till = string.match(listed[i + 1], '^(%d+) (%d+)$')
  if tonumber(till) * 1000 < now then
    redis.call('HDEL', LISTED, listed[i])
    redis.call('HDEL', OWNERS, listed[i])
  else
    free = free - size
    if caller ~= '' and redis.call('HGET', OWNERS, listed[i]) == caller then has = has + size end
  end
end
if #content > free then return 'all' end
if caller ~= '' and weight ~= '0' and has + #content > tonumber(weight) * (free - #content) then return 'share' end
redis.call('HSET', LISTED, name, #content .. ' ' .. whole(now / 1000 + seconds))
if caller ~= '' then redis.call('HSET', OWNERS, name, caller) end
redis.call('SET', base .. '.blob:' .. name, content, 'EX', seconds)
return ''
