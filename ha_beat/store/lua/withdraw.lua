-- Withdraw a request.
-- KEYS: requests, answer, progress
-- ARGV: id
-- Answers whether it was waiting, and its answer or ''.
local removed = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return { removed, redis.call('GET', KEYS[2]) or '' }
