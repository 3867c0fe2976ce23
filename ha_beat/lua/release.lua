-- KEYS: lease
-- ARGV: epoch, nonce, reason, wake channel
if foreign(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'state', 'released', 'presence', '', 'reason', ARGV[3])
redis.pcall('PUBLISH', ARGV[4], 'released')
return 1
