-- Acquire the lease for a new term, if it is still as the candidate saw it.
-- KEYS: lease, ledger, journal
-- ARGV: expected epoch ('' for no record), expected seq, absent ('1': only while the presence channel in the record has
--       no subscriber), highest epoch that the candidate has seen, fingerprint of its app, new gen, presence channel to
--       register, schema of this version, code of why the lease is free, holder, journal size ('' for no limit), then
--       name and value of the other fields of the record
-- Returns {'refused', code}, {'foreign_app', fingerprint}, {'newer_schema', schema} or {'acquired', epoch, gen,
-- previous gen of the lease, of the ledger, run id, run id of the last completed takeover, note of an unfinished
-- recovery ('' for none), time in ms, registered presence channel ('' for none), previous holder}.
local lease, ledger, journal = KEYS[1], KEYS[2], KEYS[3]
local expected_epoch, expected_seq, absent, seen_epoch, fingerprint, new_gen, presence, schema, reason, holder,
  journal_size = unpack(ARGV, 1, 11)

-- The first phase writes nothing.
local was_epoch, was_seq, was_presence, was_gen, was_holder, was_renewed_ms =
  unpack(redis.call('HMGET', lease, 'epoch', 'seq', 'presence', 'gen', 'holder', 'renewed_ms'), 1, 6)
local ledger_gen, ledger_epoch, ledger_app, takeover_run_id, ledger_schema, unfinished =
  unpack(redis.call('HMGET', ledger, 'm:gen', 'm:epoch', 'm:fingerprint', 'm:run_id', 'm:schema', 'm:unfinished'), 1, 6)

local exists = #redis.call('HGETALL', lease) > 0
local as_seen = number(was_epoch) == number(expected_epoch) and number(was_seq) == number(expected_seq)
if exists ~= (expected_epoch ~= '') or not as_seen then -- guard: acquire-compare
  return { 'refused', 'moved' }
end
if absent == '1' and subscribers(was_presence) ~= 0 then -- guard: acquire-absent-still
  return { 'refused', 'holder_present' }
end
if ledger_app and ledger_app ~= fingerprint then -- guard: acquire-same-app
  return { 'foreign_app', ledger_app }
end
if ledger_schema and number(ledger_schema) > tonumber(schema) then -- guard: acquire-newer-schema
  return { 'newer_schema', ledger_schema }
end

local now = time_ms()
local epoch = int(math.max(
  number(was_epoch) + 1, -- guard: epoch-above-lease
  number(ledger_epoch) + 1, -- guard: epoch-above-ledger
  tonumber(seen_epoch) + 1, -- guard: epoch-above-seen
  now -- guard: epoch-above-time
))
local this_server = run_id()
-- A ledger without a lease is kept. Without a ledger, or with another one than the lease names, the state is new.
local gen = ledger_gen
if not gen
  or (was_gen and was_gen ~= gen) -- guard: acquire-other-ledger
then gen = new_gen end
if subscribers(presence) < 1 then presence = '' end -- guard: acquire-presence-counted
-- The server of the last completed takeover stays until this takeover is complete. The next leader can then resume it.
local written_on = takeover_run_id
if not written_on or written_on == '' then written_on = this_server end -- guard: acquire-unfinished

redis.call('HSET', lease, 'epoch', epoch, 'seq', '1', 'state', 'held', 'gen', gen, 'run_id', this_server,
  'presence', presence, 'since_ms', int(now), 'renewed_ms', int(now), 'reason', '', 'detail', '', 'preferred', '',
  'holder', holder, unpack(ARGV, 12))
redis.call('HSET', ledger, 'm:gen', gen, 'm:epoch', epoch, 'm:fingerprint', fingerprint, 'm:run_id', written_on,
  'm:schema', schema)
append_record(journal, ledger, {
  kind = 'term', event = 'acquired', epoch = tonumber(epoch), by = holder, reason = reason, ms = now,
  previous = was_holder or '', previous_epoch = number(was_epoch), left_ms = number(was_renewed_ms),
})
-- Without verdicts, nothing else bounds the records of changes of leader.
if journal_size ~= '' then redis.pcall('XTRIM', journal, 'MAXLEN', '~', journal_size) end
return { 'acquired', epoch, gen, was_gen or '', ledger_gen or '', this_server, takeover_run_id or '', unfinished or '',
  int(now), presence, was_holder or '' }
