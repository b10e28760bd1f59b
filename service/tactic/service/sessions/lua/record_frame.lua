-- KEYS[3] frames. ARGV: fence, seq, frame. Sequence numbers make it idempotent.
local stop = refused(ARGV[1], 'frame')
if stop then return stop end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
if not last or tonumber(string.match(last[1], '^%d+')) < tonumber(ARGV[2]) then
  redis.call('XADD', KEYS[3], ARGV[2] .. '-0', 'frame', ARGV[3])
end
return {'OK'}
