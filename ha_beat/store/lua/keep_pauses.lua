-- Restore pauses that were lost with the ledger, and record that this incarnation of the ledger has them all.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, gen, then field and value of each pause
-- Returns '', or the code that refuses the term.
local lease, ledger = KEYS[1], KEYS[2]
local epoch, nonce, gen = unpack(ARGV, 1, 3)
local why = fence(lease, epoch, nonce)
if why then return why end
for i = 4, #ARGV, 2 do redis.call('HSETNX', ledger, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', ledger, 'm:paused_gen', gen)
return ''
