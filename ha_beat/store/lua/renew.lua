-- KEYS: lease, ledger, journal, requests
-- ARGV: epoch, nonce, seq, presence channel to register, gen, run id, age in ms from which journal records are trimmed
--       ('' for none), scheduling time minus the server's, in ms
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'lost', why } end
if redis.call('HGET', KEYS[2], 'm:gen') ~= ARGV[5] then return { 'lost', 'other_ledger' } end -- guard: renew-gen
if another_server(ARGV[6]) then return { 'lost', 'other_server' } end -- guard: renew-run-id
-- A late attempt must not move seq back: trust counts from the attempt that set it.
if number(redis.call('HGET', KEYS[1], 'seq')) >= tonumber(ARGV[3]) then return { 'late', '' } end -- guard: renew-seq
local presence = ARGV[4]
if subscribers(presence) < 1 then presence = '' end
local now = time_ms()
redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'presence', presence, 'renewed_ms', int(now), 'offset_ms', ARGV[8])
if ARGV[7] ~= '' then redis.pcall('XTRIM', KEYS[3], 'MINID', '~', int(now - tonumber(ARGV[7])) .. '-0') end
local waiting = redis.pcall('HLEN', KEYS[4]) -- guard: renew-requests-pcall
return { 'renewed', presence, int(now), type(waiting) == 'number' and waiting or 0 }
