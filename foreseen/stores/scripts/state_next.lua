local t = redis.call('TIME')
local last = tonumber(redis.call('HGET', KEYS[1], 'last') or '0')
local function purge(kind, what, above)
  local generation = string.format('%.0f', math.max(above + 1, t[1] * 1000000 + t[2]))
  redis.call('HSET', KEYS[1], 'last', generation)
  if kind ~= 'key' then redis.call('HSET', KEYS[1], kind .. ':' .. what, generation) end
  redis.call('XADD', KEYS[2], generation .. '-1', 'kind', kind, 'what', what)
  return generation
end
