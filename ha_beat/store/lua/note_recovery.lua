-- Record the server of the last takeover, and that its recovery is complete or what is still in doubt.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, run id, what is in doubt ('' once the recovery is complete)
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return why end
redis.call('HSET', KEYS[2], 'm:run_id', ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[2], 'm:unfinished')
else
  redis.call('HSET', KEYS[2], 'm:unfinished', ARGV[4])
end
return ''
