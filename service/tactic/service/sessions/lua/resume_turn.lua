-- KEYS[3] turns, KEYS[4] turn, KEYS[5] frames. ARGV: turn id, nonce, ttl in ms.
-- RUN: the caller now runs the turn. FOLLOW: another does. FINISHED: read its frames. ENDED: it was cut short, and
-- the session has gone on without it.
if redis.call('EXISTS', meta) == 0 then return {'MISSING'} end
local state = redis.call('HGET', KEYS[4], 'state')
if not state then
  return {redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 and 'TURN_EXPIRED' or 'TURN_MISSING'}
end
local current = holder()
if current and current.nonce == ARGV[2] then return {'RUN', current.fence} end
if state == 'finished' then return {'FINISHED'} end
if current then
  return {current.kind == 'turn' and current.id == ARGV[1] and 'FOLLOW' or 'ENDED'}
end
if state == 'interrupted' then
  local untouched = field('last_turn') == ARGV[1] and field('tokens') == redis.call('HGET', KEYS[4], 'end')
    and field('active') == '' and field('append_id') == ''
  if not untouched then return {'ENDED'} end
  redis.call('PERSIST', KEYS[4])
  redis.call('PERSIST', KEYS[5])
  redis.call('HSET', KEYS[4], 'state', 'running')
  redis.call('HSET', KEYS[3], ARGV[1], 'running')
  redis.call('HSET', meta, 'active', ARGV[1])
end
return {'RUN', take('turn', ARGV[1], ARGV[2], ARGV[3])}
