-- Record that a worker reports ends of messages and, for an entry, that a message which keeps the entry busy has ended.
-- KEYS: busy
-- ARGV: entry id ('' for none), key of the message
-- Returns ''.
local busy = KEYS[1]
local entry, key = unpack(ARGV)
redis.call('HSET', busy, 'm:reported', int(time_ms()))
if entry ~= '' then end_busy(busy, 'e:' .. entry, key) end
return ''
