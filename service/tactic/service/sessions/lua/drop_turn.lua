-- KEYS[3] turns, KEYS[4] turn, KEYS[5] frames. ARGV: fence, op, turn id.
local stop = refused(ARGV[1], ARGV[2])
if stop then return stop end
redis.call('UNLINK', KEYS[4], KEYS[5])
redis.call('HDEL', KEYS[3], ARGV[3])
redis.call('HSET', meta, 'active', '', 'op', ARGV[2])
release()
return {'OK'}
