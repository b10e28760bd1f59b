-- KEYS[3] log, KEYS[4] turns, KEYS[5] turn, KEYS[6] frames. ARGV: fence, op, turn id, state, ms to keep frames,
-- output tokens in the log afterwards, tokens added to the log, seq and content of the last frame ('' for none),
-- then the packed tokens.
local stop = refused(ARGV[1], ARGV[2])
if stop then return stop end
for i = 10, #ARGV do redis.call('RPUSH', KEYS[3], ARGV[i]) end
if tonumber(ARGV[7]) > 0 then
  local first = redis.call('HGET', KEYS[5], 'start') == redis.call('HGET', KEYS[5], 'end')
  redis.call('HINCRBY', meta, 'tokens', ARGV[7])
  redis.call('HINCRBY', meta, 'turns', first and 1 or 0)
  redis.call('HSET', meta, 'tail', 'assistant', 'updated', now_ms())
end
redis.call('HSET', meta, 'active', '', 'last_turn', ARGV[3], 'op', ARGV[2])
redis.call('HSET', KEYS[5], 'state', ARGV[4], 'end', field('tokens'), 'logged', ARGV[6])
redis.call('HSET', KEYS[4], ARGV[3], ARGV[4])
if ARGV[9] ~= '' then redis.call('XADD', KEYS[6], ARGV[8] .. '-0', 'frame', ARGV[9]) end
redis.call('PEXPIRE', KEYS[5], ARGV[5])
redis.call('PEXPIRE', KEYS[6], ARGV[5])
release()
return {'OK'}
