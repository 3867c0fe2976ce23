-- Note entries of the settings, and delete removed ones. KEYS: statics, schedule, mark, then the removed entries.
-- ARGV: epoch, names of the removed entries in the order of their keys, then names to note.
local statics, schedule, mark = KEYS[1], KEYS[2], KEYS[3]
if redis.call('HGET', mark, 'epoch') ~= ARGV[1] then return 0 end -- guard: redbeat-statics-fenced
local removed = #KEYS - 3
for i = 2, #ARGV do
  if i <= removed + 1 then
    redis.call('SREM', statics, ARGV[i])
    redis.call('ZREM', schedule, KEYS[i + 2])
    redis.call('DEL', KEYS[i + 2])
  else
    redis.call('SADD', statics, ARGV[i])
  end
end
return 1
