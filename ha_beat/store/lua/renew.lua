-- Renew the lease.
-- KEYS: lease, ledger, journal, requests
-- ARGV: epoch, nonce, seq, presence channel to register ('' for none), gen, run id, age in ms from which journal
--       records are trimmed ('' for none), scheduling time minus the server's in ms
-- Returns {'lost', code}, {'late', ''} if an attempt with this seq or a higher one was executed before, or
-- {'renewed', registered presence channel ('' for none), time in ms, number of waiting requests}.
local lease, ledger, journal, requests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, nonce, seq, presence, gen, expected_run_id, journal_age_ms, offset_ms = unpack(ARGV)

-- The first phase writes nothing.
local why = fence(lease, epoch, nonce)
if why then return { 'lost', why } end
if redis.call('HGET', ledger, 'm:gen') ~= gen then return { 'lost', 'other_ledger' } end -- guard: renew-gen
if another_server(expected_run_id) then return { 'lost', 'other_server' } end -- guard: renew-run-id
-- A late attempt must not move seq back: trust counts from the attempt that set it.
if number(redis.call('HGET', lease, 'seq')) >= tonumber(seq) then return { 'late', '' } end -- guard: renew-seq
if subscribers(presence) < 1 then presence = '' end

local now = time_ms()
redis.call('HSET', lease, 'seq', seq, 'presence', presence, 'renewed_ms', int(now), 'offset_ms', offset_ms)
if journal_age_ms ~= '' then
  redis.pcall('XTRIM', journal, 'MINID', '~', int(now - tonumber(journal_age_ms)) .. '-0')
end
local waiting = redis.pcall('HLEN', requests) -- guard: renew-requests-pcall
return { 'renewed', presence, int(now), type(waiting) == 'number' and waiting or 0 }
