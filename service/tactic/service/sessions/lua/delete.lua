-- KEYS[3] log, KEYS[4] turns, KEYS[5] appends, KEYS[6] tombstone. ARGV: nonce, prefix of the session's keys.
if redis.call('EXISTS', meta) == 0 then
  return {redis.call('GET', KEYS[6]) == ARGV[1] and 'OK' or 'MISSING'}
end
for _, turn in ipairs(redis.call('HKEYS', KEYS[4])) do
  redis.call('UNLINK', ARGV[2] .. 'turn:' .. turn, ARGV[2] .. 'frames:' .. turn)
end
redis.call('UNLINK', meta, lease, KEYS[3], KEYS[4], KEYS[5])
redis.call('SET', KEYS[6], ARGV[1], 'PX', 60000)
return {'OK'}
