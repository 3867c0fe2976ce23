-- Write rows of the ledger while there is no leader.
-- KEYS: lease, ledger
-- ARGV: for each row: entry id, expected row ('' for none), new row
-- Returns {'led', holder}, or {'done', 1 or 0 for each row}: 0 if it was not the expected one.
local lease, ledger = KEYS[1], KEYS[2]
local state, holder, renewed_ms, ttl_ms =
  unpack(redis.call('HMGET', lease, 'state', 'holder', 'renewed_ms', 'ttl_ms'), 1, 4)
if state == 'held' and time_ms() - number(renewed_ms) <= number(ttl_ms) then return { 'led', holder } end

local answers = { 'done' }
for i = 1, #ARGV, 3 do
  local field, expected, row = 'e:' .. ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local found = (redis.call('HGET', ledger, field) or '') == expected
  if found then redis.call('HSET', ledger, field, row) end
  answers[#answers + 1] = found and 1 or 0
end
return answers
