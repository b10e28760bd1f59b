-- ARGV: fence, lease value, ttl in ms.
local stop = refused(ARGV[1], 'renew')
if stop then return stop end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
return {'OK'}
