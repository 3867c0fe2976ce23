-- Write one entry as redbeat saves it. KEYS: entry; and, if one node has them all, schedule and mark.
-- ARGV: epoch, '1' to replace a definition, definition, meta, stamp, score.
local entry, schedule, mark = KEYS[1], KEYS[2], KEYS[3]
if mark and redis.call('HGET', mark, 'epoch') ~= ARGV[1] then return -1 end -- guard: redbeat-save-fenced
if ARGV[2] == '' and redis.call('HEXISTS', entry, 'definition') == 1 then return 0 end -- guard: redbeat-restore-absent
redis.call('HSET', entry, 'definition', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSETNX', entry, 'meta', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('HSET', entry, 'ha_beat', ARGV[5]) end
if schedule then redis.call('ZADD', schedule, ARGV[6], entry) end
return 1
