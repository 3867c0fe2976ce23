-- KEYS: ledger, journal
-- ARGV: the last record's id known, how many records at most
-- The ledger's incarnation, the journal's counter, and the records since.
local meta = redis.call('HMGET', KEYS[1], 'm:gen', 'm:journal')
return { meta[1] or '', meta[2] or '0', redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]) }
