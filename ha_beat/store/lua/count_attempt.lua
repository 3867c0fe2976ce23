-- Change the number of terms that have begun to carry out a request.
-- KEYS: lease, requests
-- ARGV: epoch, nonce, request id, change (1 or -1)
-- Returns {'fenced', code}, {'withdrawn', ''} if the request no longer waits, or {'counted', ''}.
local lease, requests = KEYS[1], KEYS[2]
local epoch, nonce, id, change = unpack(ARGV)
local why = fence(lease, epoch, nonce)
if why then return { 'fenced', why } end
local raw = redis.call('HGET', requests, id)
if not raw then return { 'withdrawn', '' } end
local times, attempts, request = string.match(raw, '^(%d+ %d+ )(%d+)( .*)$')
if times then
  redis.call('HSET', requests, id, times .. int(math.max(number(attempts) + tonumber(change), 0)) .. request)
end
return { 'counted', '' }
