-- Withdraw a request.
-- KEYS: requests, answer, progress
-- ARGV: request id
-- Returns {1 if it was waiting, else 0; its answer or ''}.
local requests, answer, progress = KEYS[1], KEYS[2], KEYS[3]
local id = ARGV[1]
local removed = redis.call('HDEL', requests, id)
redis.call('HDEL', progress, id)
return { removed, redis.call('GET', answer) or '' }
