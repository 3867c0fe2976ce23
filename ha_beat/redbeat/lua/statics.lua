-- Note entries of the settings, and delete those that are gone. KEYS: statics, schedule, mark, then the entries that are
-- gone. ARGV: epoch, names that are gone in the order of their keys, then names to note.
local statics, schedule, mark = KEYS[1], KEYS[2], KEYS[3]
if redis.call('HGET', mark, 'epoch') ~= ARGV[1] then return 0 end -- guard: redbeat-statics-fenced
local gone = #KEYS - 3
for i = 2, #ARGV do
  if i <= gone + 1 then
    redis.call('SREM', statics, ARGV[i])
    redis.call('ZREM', schedule, KEYS[i + 2])
    redis.call('DEL', KEYS[i + 2])
  else
    redis.call('SADD', statics, ARGV[i])
  end
end
return 1
