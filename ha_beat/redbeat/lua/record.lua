-- Write the run state of one entry if it is as expected, else return it. KEYS: entry. ARGV: expected and new meta, stamp.
local found = redis.call('HMGET', KEYS[1], 'definition', 'meta')
if not found[1] then return 0 end
local meta = found[2] or ''
if meta ~= ARGV[1] then return meta end -- guard: redbeat-run-state-as-known
redis.call('HSET', KEYS[1], 'meta', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'ha_beat', ARGV[3]) end
return 1
