-- Record the server of the last completed takeover, and what of its recovery remains for the next leader.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, run id, unfinished recovery ('' if it is complete)
-- Returns '', or the code that refuses the term.
local lease, ledger = KEYS[1], KEYS[2]
local epoch, nonce, this_server, unfinished = unpack(ARGV)
local why = fence(lease, epoch, nonce)
if why then return why end
redis.call('HSET', ledger, 'm:run_id', this_server)
if unfinished == '' then
  redis.call('HDEL', ledger, 'm:unfinished')
else
  redis.call('HSET', ledger, 'm:unfinished', unfinished)
end
return ''
