-- KEYS[1]: as in charge.lua. ARGV: kind. Answers how many requests of this kind are running.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = 0
for _, value in ipairs(redis.call('HVALS', KEYS[1])) do
  local kind, expiry = string.match(value, '(%a+) (%d+)$')
  if kind == ARGV[1] and tonumber(expiry) > now then count = count + 1 end
end
return count
