-- KEYS[1]: as in charge.lua. ARGV: ttl in ms, then request ids. What has been discharged stays so.
local time = redis.call('TIME')
local expiry = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value then redis.call('HSET', KEYS[1], ARGV[i], (string.gsub(value, '%d+$', expiry))) end
end
return 1
