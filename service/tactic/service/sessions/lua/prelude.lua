-- Shared by all session scripts. KEYS[1] is the session's meta hash, KEYS[2] its lease.
-- Each script answers an array whose first element is its outcome. A script that is replayed (same `op` or
-- `nonce`) answers as it did the first time and changes nothing.
local meta, lease = KEYS[1], KEYS[2]

local function field(name)
  return redis.call('HGET', meta, name) or ''
end

local function now_ms()
  local time = redis.call('TIME')
  return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end

local function holder()
  local value = redis.call('GET', lease)
  if not value then return nil end
  local fence, kind, id, nonce = string.match(value, '^(%S+) (%S+) (%S+) (%S+)$')
  return {fence = fence, kind = kind, id = id, nonce = nonce}
end

-- Takes the lease under a new fence, so that whoever held it before can change nothing any more.
local function take(kind, id, nonce, ttl)
  redis.call('HINCRBY', meta, 'fence', 1)
  local fence = field('fence')
  redis.call('SET', lease, fence .. ' ' .. kind .. ' ' .. id .. ' ' .. nonce, 'PX', ttl)
  return fence
end

-- The fence moves here too: a renewal that is still under way must not bring the lease back.
local function release()
  redis.call('DEL', lease)
  redis.call('HINCRBY', meta, 'fence', 1)
end

-- What ends a fenced change early, or nil.
local function refused(fence, op)
  if redis.call('EXISTS', meta) == 0 then return {'MISSING'} end
  if field('op') == op then return {'OK'} end
  if field('fence') ~= fence then return {'FENCED'} end
  return nil
end
