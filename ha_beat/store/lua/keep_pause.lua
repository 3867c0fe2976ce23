-- Restore a pause that was lost with the ledger.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, the pause
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
return { 'kept', redis.call('HSETNX', KEYS[2], 'm:paused', ARGV[3]) }
