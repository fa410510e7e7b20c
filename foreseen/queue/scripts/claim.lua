-- worker, a worker that has certainly ended (empty: any silent worker), ms of silence, how many at most → messages
-- and jobs that are now the worker's own. In one script: of two that claim from the same dead one, one gets a message.
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
