-- Write rows of the ledger while there is no leader.
-- KEYS: lease, ledger
-- ARGV: rounds of three: entry id, the row expected ('' for none), the new row
-- Answers {'led', holder}, or {'done', 1 or 0 for each}: 0 if another row was found.
local lease = redis.call('HMGET', KEYS[1], 'state', 'holder', 'renewed_ms', 'ttl_ms')
if lease[1] == 'held' then
  if time_ms() - number(lease[3]) <= number(lease[4]) then return { 'led', lease[2] } end
end
local answers = { 'done' }
for i = 1, #ARGV, 3 do
  local field = 'e:' .. ARGV[i]
  local expected = (redis.call('HGET', KEYS[2], field) or '') == ARGV[i + 1]
  if expected then redis.call('HSET', KEYS[2], field, ARGV[i + 2]) end
  answers[#answers + 1] = expected and 1 or 0
end
return answers
