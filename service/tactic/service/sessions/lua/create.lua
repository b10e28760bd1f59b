-- KEYS[3] log, KEYS[4] staged log of a fork (absent: an empty session). ARGV: nonce, then pairs of meta fields.
if redis.call('EXISTS', meta) == 1 then
  return {field('created_by') == ARGV[1] and 'OK' or 'EXISTS'}
end
local time = redis.call('TIME')
-- A fence that starts at the clock is newer than any of a deleted session of the same name.
local fence = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', meta, 'created_by', ARGV[1], 'fence', fence, 'created', now_ms(), 'updated', now_ms(),
  unpack(ARGV, 2))
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('RENAME', KEYS[4], KEYS[3])
  redis.call('PERSIST', KEYS[3])
end
return {'OK'}
