-- Restore pauses that were lost with the ledger, and note that the pauses are those of its present incarnation.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, gen, then field and value of each pause
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[2], 'm:paused_gen', ARGV[3])
return { 'kept', '' }
