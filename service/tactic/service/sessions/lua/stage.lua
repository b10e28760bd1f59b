-- KEYS[3] staged log. ARGV: chunks that it must have, ttl in s, then more packed tokens.
if redis.call('LLEN', KEYS[3]) == tonumber(ARGV[1]) then
  for i = 3, #ARGV do redis.call('RPUSH', KEYS[3], ARGV[i]) end
  redis.call('EXPIRE', KEYS[3], ARGV[2])
end
return {'OK'}
