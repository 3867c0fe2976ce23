-- Restore pauses that were lost with the ledger.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, then field and value of each pause
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
for i = 3, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
return { 'kept', '' }
