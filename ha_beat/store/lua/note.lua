-- Write notes to the ledger.
-- KEYS: lease, ledger
-- ARGV: epoch, nonce, then name and value of each note
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return why end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[2], 'n:' .. ARGV[i], ARGV[i + 1]) end
return ''
