-- KEYS[3] log, KEYS[4] appends. ARGV: fence, op, append id, offset before, offset after, carry, anchor, tokens added,
-- last (0 or 1), then the packed tokens.
local stop = refused(ARGV[1], ARGV[2])
if stop then return stop end
local offset = field('append_id') == ARGV[3] and field('append_offset') or '0'
if offset ~= ARGV[4] then return {'OFFSET', offset} end
for i = 10, #ARGV do redis.call('RPUSH', KEYS[3], ARGV[i]) end
local added = tonumber(ARGV[8])
local sofar = (field('append_id') == ARGV[3] and tonumber(field('append_tokens')) or 0) + added
redis.call('HINCRBY', meta, 'tokens', added)
redis.call('HSET', meta, 'append_id', ARGV[3], 'append_offset', ARGV[5], 'append_tokens', sofar, 'carry', ARGV[6],
  'anchor', ARGV[7], 'tail', 'context', 'updated', now_ms(), 'op', ARGV[2])
if ARGV[9] == '1' then
  redis.call('HSET', KEYS[4], ARGV[3], ARGV[5] .. ' ' .. sofar)
  redis.call('HDEL', meta, 'append_id', 'append_offset', 'append_tokens', 'carry', 'anchor')
  release()
end
return {'OK'}
