-- Read what a shadow of the ledger needs: the journal's new records, and the pauses.
-- KEYS: ledger, journal
-- ARGV: id of the last known record, largest number of records
-- Returns {gen of the ledger, counter of the journal, number of the first new record, texts of the new records, id of
-- the newest record ('' for none), 1 if there are too many new records, so that no texts are returned, pause of the
-- cluster, pauses of entries, 1 if the pauses of an earlier incarnation of the ledger are restored}.
local ledger, journal = KEYS[1], KEYS[2]
local last_id, most = unpack(ARGV)
local gen, counter, pause, entry_pauses, paused_gen =
  unpack(redis.call('HMGET', ledger, 'm:gen', 'm:journal', 'm:paused', 'm:paused_entries', 'm:paused_gen'), 1, 5)
local records = redis.call('XRANGE', journal, '(' .. last_id, '+', 'COUNT', most)
local first, texts, newest, too_many = '', {}, '', 0
if #records == tonumber(most) then
  newest, too_many = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1][1], 1
else
  for i, record in ipairs(records) do
    local fields = {}
    for at = 1, #record[2], 2 do fields[record[2][at]] = record[2][at + 1] end
    if i == 1 then first = fields.n or '' end
    texts[i] = fields.d or ''
    newest = record[1]
  end
end
local restored = paused_gen == gen and 1 or 0
return { gen or '', counter or '0', first, texts, newest, too_many, pause or '', entry_pauses or '', restored }
