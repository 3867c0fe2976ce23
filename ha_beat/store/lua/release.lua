-- KEYS: lease, ledger, journal
-- ARGV: epoch, nonce, reason, wake channel, id of the replica that shall go first ('' for any)
if foreign(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local now = int(time_ms())
redis.call('HSET', KEYS[1], 'state', 'released', 'presence', '', 'reason', ARGV[3], 'renewed_ms', now,
  'preferred', ARGV[5])
redis.pcall('PUBLISH', ARGV[4], 'released')
tell(KEYS[3], KEYS[2], {
  kind = 'term', event = 'released', epoch = tonumber(ARGV[1]), by = redis.call('HGET', KEYS[1], 'holder'),
  why = ARGV[3], ms = tonumber(now),
})
return 1
