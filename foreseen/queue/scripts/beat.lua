-- worker, then message, job and rows done of each that it has → jobs that are not its own any more.
local me, lost = ARGV[1], {}
for i = 2, #ARGV, 3 do
  local message, id, done = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local s, o, d = unpack(redis.call('HMGET', at(id), 's', 'o', 'd'))
  if open(s) and o == me then
    redis.call('XCLAIM', QUEUE, GROUP, me, 0, message, 'JUSTID')
    if done ~= d then
      redis.call('HSET', at(id), 'd', done)
      publish_change(id)
    end
  else
    lost[#lost + 1] = id
  end
end
return lost
