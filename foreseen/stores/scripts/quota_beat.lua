-- base; JSON of {worker, number, alive (s), keep (s), tenants: [report], usage: [[field, amount]]} → JSON of {name:
-- [requests, rows, misses, used seconds]}. A report is [name, limits, demands, used, seconds, counts seconds]. What was
-- used is counted once for each number of a worker, however often it is sent.
local base, asked = KEYS[1], cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local function text(number) return string.format('%.9g', number) end
local seen = base .. '.seen:' .. asked.worker
local fresh = tonumber(redis.call('GET', seen) or '0') < asked.number
redis.call('SET', seen, asked.number, 'EX', 3600)

local function peers(key, worker)
  local sums, count, fields = {0, 0, 0}, 1, {}
  local listed = redis.call('HGETALL', key)
  for i = 1, #listed, 2 do
    local field, value = listed[i], listed[i + 1]
    if string.sub(field, 1, 2) == 'w:' then
      local at, a, b, c = string.match(value, '^(%S+) (%S+) (%S+) (%S+)$')
      if now - tonumber(at) > asked.alive then
        redis.call('HDEL', key, field)
      elseif field ~= 'w:' .. worker then
        count = count + 1
        sums = {sums[1] + a, sums[2] + b, sums[3] + c}
      end
    else
      fields[field] = tonumber(value)
    end
  end
  return sums, count, fields
end

local function share_of(limit, demand, others, count)
  local sum = demand + others
  if sum <= limit then return demand + (limit - sum) / count end
  return math.max(limit * demand / sum, 0.02 * limit / count)
end

local reply = {}
for _, report in ipairs(asked.tenants) do
  local name, limits, demands, used, seconds, counts_seconds = unpack(report)
  local key = base .. '.tenant:' .. name
  local others, count, fields = peers(key, asked.worker)
  local shares, write = {0, 0, 0, 0}, {'w:' .. asked.worker, table.concat({string.format('%.3f', now),
    text(demands[1]), text(demands[2]), text(demands[3])}, ' '), 'at', string.format('%.3f', now)}
  for i = 1, 3 do
    local limit = limits[i]
    if limit > 0 then
      local share = share_of(limit, demands[i], others[i], count)
      if i < 3 then
        local level = (fields['l' .. i] or limit) + limit * (now - (fields.at or now)) - (fresh and used[i] or 0)
        level = math.max(-10 * limit, math.min(limit, level))
        write[#write + 1] = 'l' .. i
        write[#write + 1] = text(level)
        share = share * math.max(0.25, math.min(1.25, 1 + level / (4 * limit)))
      end
      shares[i] = share
    end
  end
  redis.call('HSET', key, unpack(write))
  redis.call('EXPIRE', key, 86400)
  local day = base .. '.day:' .. math.floor(now / 86400)
  if fresh and seconds > 0 then
    redis.call('HINCRBYFLOAT', day, name, text(seconds))
    redis.call('EXPIRE', day, 172800)
  end
  if counts_seconds then shares[4] = tonumber(redis.call('HGET', day, name) or '0') end
  reply[name] = shares
end
if fresh and #asked.usage > 0 then
  local hour = base .. '.usage:' .. math.floor(now / 3600)
  for _, one in ipairs(asked.usage) do redis.call('HINCRBYFLOAT', hour, one[1], text(one[2])) end
  redis.call('EXPIRE', hour, asked.keep)
end
return cjson.encode(reply)
