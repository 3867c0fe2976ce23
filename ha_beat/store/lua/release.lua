-- KEYS: lease, ledger, journal
-- ARGV: epoch, nonce, code of the reason, its detail, wake channel, id of the preferred successor ('' for any)
if fence(KEYS[1], ARGV[1], ARGV[2]) then return 0 end -- guard: release-own-term
local now = int(time_ms())
redis.call('HSET', KEYS[1], 'state', 'released', 'presence', '', 'reason', ARGV[3], 'detail', ARGV[4],
  'renewed_ms', now, 'preferred', ARGV[6])
redis.pcall('PUBLISH', ARGV[5], 'released') -- guard: release-wakes
append_record(KEYS[3], KEYS[2], {
  kind = 'term', event = 'released', epoch = tonumber(ARGV[1]), by = redis.call('HGET', KEYS[1], 'holder'),
  reason = ARGV[3], detail = ARGV[4], ms = tonumber(now),
})
return 1
