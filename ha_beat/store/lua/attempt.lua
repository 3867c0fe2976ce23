-- Change the number of terms that have begun to carry out a request.
-- KEYS: lease, requests
-- ARGV: epoch, nonce, id, change (1 or -1)
-- Answers {'fenced', code}, {'withdrawn'} (or answered before) or {'counted'}.
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
local raw = redis.call('HGET', KEYS[2], ARGV[3])
if not raw then return { 'withdrawn', '' } end
local times, attempts, rest = string.match(raw, '^(%d+ %d+ )(%d+)( .*)$')
if times then
  redis.call('HSET', KEYS[2], ARGV[3], times .. int(math.max(number(attempts) + tonumber(ARGV[4]), 0)) .. rest)
end
return { 'counted', '' }
