-- Set fields of the mark, unless a later leader has set some. KEYS: mark. ARGV: epoch, id, then fields with their values.
local key, epoch = KEYS[1], ARGV[1]
local last = tonumber(redis.call('HGET', key, 'epoch') or '0') or 0
if last > tonumber(epoch) then return false end -- guard: redbeat-mark-fenced
redis.call('HSETNX', key, 'id', ARGV[2])
redis.call('HSET', key, 'epoch', epoch)
for i = 3, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
return redis.call('HGETALL', key)
