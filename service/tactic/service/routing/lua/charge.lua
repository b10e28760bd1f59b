-- KEYS[1]: hash of request id -> "worker tokens kind expiry". ARGV: request id, tokens, kind, ttl in ms, preferred
-- worker, then the candidates; of equally loaded ones the first is taken. Answers the worker.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local load = {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local worker, tokens, _, expiry = string.match(entries[i + 1], '^(%S+) (%d+) (%a+) (%d+)$')
  if entries[i] == ARGV[1] then return worker end
  if tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], entries[i])
  else
    load[worker] = (load[worker] or 0) + tonumber(tokens)
  end
end
local chosen
for i = 6, #ARGV do
  if ARGV[i] == ARGV[5] then chosen = ARGV[i] break end
  if not chosen or (load[ARGV[i]] or 0) < (load[chosen] or 0) then chosen = ARGV[i] end
end
local expiry = string.format('%.0f', now + ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], chosen .. ' ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. expiry)
return chosen
