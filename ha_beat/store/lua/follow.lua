-- KEYS: ledger, journal
-- ARGV: id of the last known record, largest number of records
-- Answers {gen of the ledger, counter of the journal, number of the first newer record, texts of the newer records, id of
-- the newest record ('' if there is none), 1 if there are more and no texts are given, pause of the cluster, pauses of
-- entries, 1 if a leader has restored what pauses an earlier incarnation of the ledger had}.
local meta = redis.call('HMGET', KEYS[1], 'm:gen', 'm:journal', 'm:paused', 'm:paused_entries', 'm:paused_gen')
local records = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local first, texts, newest, more = '', {}, '', 0
if #records == tonumber(ARGV[2]) then
  newest, more = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][1], 1
else
  for number, record in ipairs(records) do
    local fields = {}
    for at = 1, #record[2], 2 do fields[record[2][at]] = record[2][at + 1] end
    if number == 1 then first = fields.n or '' end
    texts[number] = fields.d or ''
    newest = record[1]
  end
end
local restored = meta[5] == meta[1] and 1 or 0
return { meta[1] or '', meta[2] or '0', first, texts, newest, more, meta[3] or '', meta[4] or '', restored }
