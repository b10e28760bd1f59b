-- KEYS[3] turns, KEYS[4] turn. ARGV: turn id, nonce, ttl in ms, tokens that the log must have, request, digest of
-- the request, packed prompt tokens.
if redis.call('EXISTS', meta) == 0 then return {'MISSING'} end
local current = holder()
if current and current.nonce == ARGV[2] then return {'OK', current.fence} end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return {'TURN_EXISTS'} end
if current then return {'BUSY', current.kind, current.id} end
if field('active') ~= '' then return {'ORPHAN', field('active')} end
if field('append_id') ~= '' then return {'APPEND_OPEN', field('append_id'), field('append_offset')} end
if field('tokens') ~= ARGV[4] then return {'MOVED'} end
redis.call('HSET', KEYS[4], 'state', 'running', 'request', ARGV[5], 'digest', ARGV[6], 'prompt', ARGV[7],
  'start', ARGV[4], 'end', ARGV[4], 'logged', 0)
redis.call('HSET', KEYS[3], ARGV[1], 'running')
redis.call('HSET', meta, 'active', ARGV[1])
return {'OK', take('turn', ARGV[1], ARGV[2], ARGV[3])}
