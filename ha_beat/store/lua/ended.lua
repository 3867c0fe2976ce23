-- Record that a worker reports ends and, with an entry, that a message which keeps that entry busy has ended.
-- KEYS: busy
-- ARGV: entry id ('' for none), what identifies the message
redis.call('HSET', KEYS[1], 'm:reported', int(time_ms()))
if ARGV[1] ~= '' then end_busy(KEYS[1], 'e:' .. ARGV[1], ARGV[2]) end
return ''
