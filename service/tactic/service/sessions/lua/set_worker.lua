-- A hint for routing, so it carries no fence. ARGV: worker id.
if redis.call('EXISTS', meta) == 0 then return {'MISSING'} end
redis.call('HSET', meta, 'worker', ARGV[1])
return {'OK'}
