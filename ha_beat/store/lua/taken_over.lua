-- Say on which server the last takeover was completed; or that it is not, with what is in doubt behind the run id.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, run id
local why = foreign(KEYS[1], ARGV[1], ARGV[2])
if why then return why end
redis.call('HSET', KEYS[2], 'm:run_id', ARGV[3])
return ''
