-- KEYS[3] appends. ARGV: append id, nonce, ttl in ms. The same append id takes over from a front end that lost its
-- client.
if redis.call('EXISTS', meta) == 0 then return {'MISSING'} end
local current = holder()
if current and current.nonce == ARGV[2] then return {'OK', current.fence} end
local done = redis.call('HGET', KEYS[3], ARGV[1])
if done then return {'DONE', string.match(done, '^(%S+) (%S+)$')} end
if current and not (current.kind == 'append' and current.id == ARGV[1]) then
  return {'BUSY', current.kind, current.id}
end
if field('active') ~= '' then return {'ORPHAN', field('active')} end
local open = field('append_id')
if open ~= '' and open ~= ARGV[1] then return {'APPEND_OPEN', open, field('append_offset')} end
return {'OK', take('append', ARGV[1], ARGV[2], ARGV[3])}
