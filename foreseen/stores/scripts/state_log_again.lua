-- Refused, one by one, where the log has newer ones already.
for i = 1, #ARGV, 2 do
  redis.pcall('XADD', KEYS[1], ARGV[i] .. '-1', 'kind', 'key', 'what', ARGV[i + 1])
end
