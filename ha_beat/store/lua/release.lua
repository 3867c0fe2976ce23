-- Release the lease and wake the standbys.
-- KEYS: lease, ledger, journal
-- ARGV: epoch, nonce, code of the reason, its detail, wake channel, id of the preferred successor ('' for any)
-- Returns 1, or 0 if the term does not hold the lease.
local lease, ledger, journal = KEYS[1], KEYS[2], KEYS[3]
local epoch, nonce, reason, detail, wake, preferred = unpack(ARGV)
if fence(lease, epoch, nonce) then return 0 end -- guard: release-own-term

local now = time_ms()
redis.call('HSET', lease, 'state', 'released', 'presence', '', 'reason', reason, 'detail', detail,
  'renewed_ms', int(now), 'preferred', preferred)
redis.pcall('PUBLISH', wake, 'released') -- guard: release-wakes
append_record(journal, ledger, {
  kind = 'term', event = 'released', epoch = tonumber(epoch), by = redis.call('HGET', lease, 'holder'),
  reason = reason, detail = detail, ms = now,
})
return 1
