-- Write notes to the ledger.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, then name and value of each note
-- Returns '', or the code that refuses the term.
local lease, ledger = KEYS[1], KEYS[2]
local epoch, nonce = unpack(ARGV, 1, 2)
local why = fence(lease, epoch, nonce)
if why then return why end
for i = 3, #ARGV, 2 do redis.call('HSET', ledger, 'n:' .. ARGV[i], ARGV[i + 1]) end
return ''
