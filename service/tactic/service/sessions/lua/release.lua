-- ARGV: fence, op.
local stop = refused(ARGV[1], ARGV[2])
if stop then return stop end
redis.call('HSET', meta, 'op', ARGV[2])
release()
return {'OK'}
