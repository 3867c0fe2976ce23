-- KEYS: ledger, journal
-- ARGV: id of the last known record, largest number of records
-- Answers {gen of the ledger, counter of the journal, newer records, pause in force}.
local meta = redis.call('HMGET', KEYS[1], 'm:gen', 'm:journal', 'm:paused')
return { meta[1] or '', meta[2] or '0', redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]), meta[3] or '' }
