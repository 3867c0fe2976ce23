-- Return all waiting requests and the server's time in ms. Drop the progress of requests that are gone, for example
-- because their key was deleted.
-- KEYS: requests, progress
local begun = redis.call('HGETALL', KEYS[2])
for i = 1, #begun, 2 do
  if redis.call('HEXISTS', KEYS[1], begun[i]) == 0 then redis.pcall('HDEL', KEYS[2], begun[i]) end
end
return { redis.call('HGETALL', KEYS[1]), int(time_ms()) }
