-- KEYS: lease, ledger, journal
-- ARGV: expected epoch ('' for no record), expected seq, absent ('1': only if the presence channel has no subscriber),
--       highest epoch seen, fingerprint, new gen, wanted presence channel, schema,
--       code of why the lease is free, holder, journal size ('' for no limit), then the fields of the new record
local lease, ledger = KEYS[1], KEYS[2]
local was = redis.call('HMGET', lease, 'epoch', 'seq', 'state', 'presence', 'gen', 'run_id', 'holder', 'renewed_ms')
local meta = redis.call('HMGET', ledger, 'm:gen', 'm:epoch', 'm:fingerprint', 'm:run_id', 'm:schema', 'm:unfinished')

local stands = #redis.call('HGETALL', lease) > 0
local as_seen = number(was[1]) == number(ARGV[1]) and number(was[2]) == number(ARGV[2])
if stands ~= (ARGV[1] ~= '') or not as_seen then -- guard: acquire-compare
  return { 'refused', 'moved' }
end
if ARGV[3] == '1' and subscribers(was[4]) ~= 0 then -- guard: acquire-absent-still
  return { 'refused', 'holder_present' }
end
if meta[3] and meta[3] ~= ARGV[5] then -- guard: acquire-same-app
  return { 'foreign_app', meta[3] }
end
if meta[5] and number(meta[5]) > tonumber(ARGV[8]) then -- guard: acquire-newer-schema
  return { 'newer_schema', meta[5] }
end

local epoch = int(math.max(
  number(was[1]) + 1, -- guard: epoch-above-lease
  number(meta[2]) + 1, -- guard: epoch-above-ledger
  tonumber(ARGV[4]) + 1, -- guard: epoch-above-seen
  time_ms() -- guard: epoch-above-time
))
local now = int(time_ms())
local server = run_id()
-- A ledger without a lease is kept. Without a ledger, or with another one than the lease names, the state is new.
local gen = meta[1]
if not gen
  or (was[5] and was[5] ~= gen) -- guard: acquire-other-ledger
then gen = ARGV[6] end
local presence = ARGV[7]
if subscribers(presence) < 1 then presence = '' end -- guard: acquire-presence-counted

redis.call('HSET', lease, 'epoch', epoch, 'seq', '1', 'state', 'held', 'gen', gen, 'run_id', server,
  'presence', presence, 'since_ms', now, 'renewed_ms', now, 'reason', '', 'detail', '', 'preferred', '', 'holder', ARGV[10], unpack(ARGV, 12))
-- The server of the last completed takeover stays until this takeover is complete, so that the next leader can resume it.
local written_on = meta[4]
if not written_on or written_on == '' then written_on = server end -- guard: acquire-unfinished
redis.call('HSET', ledger, 'm:gen', gen, 'm:epoch', epoch, 'm:fingerprint', ARGV[5], 'm:run_id', written_on, 'm:schema', ARGV[8])
append_record(KEYS[3], ledger, {
  kind = 'term', event = 'acquired', epoch = tonumber(epoch), by = ARGV[10], reason = ARGV[9], ms = tonumber(now),
  previous = was[7] or '', previous_epoch = number(was[1]), left_ms = number(was[8]),
})
-- Without verdicts, nothing else bounds the records of changes of leader.
if ARGV[11] ~= '' then redis.pcall('XTRIM', KEYS[3], 'MAXLEN', '~', ARGV[11]) end
return { 'acquired', epoch, gen, was[5] or '', meta[1] or '', server, meta[4] or '', meta[6] or '',
  now, presence, was[7] or '' }
