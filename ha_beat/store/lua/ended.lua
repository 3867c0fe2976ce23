-- Record that a worker reports ends and, with an entry, that the message which keeps that entry busy has ended.
-- KEYS: busy
-- ARGV: entry id ('' for none), what identifies the message
redis.call('HSET', KEYS[1], 'm:reported', int(time_ms()))
local raw = redis.call('HGET', KEYS[1], 'e:' .. ARGV[1])
if raw and string.match(raw, '^%d+ (.*)$') == ARGV[2] then -- guard: overlap-ended-other
  redis.call('HDEL', KEYS[1], 'e:' .. ARGV[1])
end
return ''
