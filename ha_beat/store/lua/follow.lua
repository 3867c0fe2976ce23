-- KEYS: ledger, journal
-- ARGV: the last record's id known, how many records at most
-- The ledger's incarnation, the journal's counter, the records since, and the pause in force.
local meta = redis.call('HMGET', KEYS[1], 'm:gen', 'm:journal', 'm:paused')
return { meta[1] or '', meta[2] or '0', redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]), meta[3] or '' }
