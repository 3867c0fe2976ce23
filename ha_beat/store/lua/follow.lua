-- KEYS: ledger, journal
-- ARGV: id of the last known record, largest number of records
-- Answers {gen of the ledger, counter of the journal, newer records, pause of the cluster, id of the newest record ('' if
-- there are not more), pauses of entries, 1 if a leader has restored what
-- pauses an earlier incarnation of the ledger had}.
local meta = redis.call('HMGET', KEYS[1], 'm:gen', 'm:journal', 'm:paused', 'm:paused_entries', 'm:paused_gen')
local records = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local newest = ''
if #records == tonumber(ARGV[2]) then
  records, newest = {}, redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][1]
end
return { meta[1] or '', meta[2] or '0', records, meta[3] or '', newest, meta[4] or '', meta[5] == meta[1] and 1 or 0 }
