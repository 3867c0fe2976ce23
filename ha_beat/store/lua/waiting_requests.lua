-- Return all waiting requests. Remove the progress of those that are gone, for example because their key was deleted.
-- KEYS: requests, progress
-- Returns {requests, time in ms}.
local requests, progress = KEYS[1], KEYS[2]
local begun = redis.call('HGETALL', progress)
for i = 1, #begun, 2 do
  if redis.call('HEXISTS', requests, begun[i]) == 0 then redis.pcall('HDEL', progress, begun[i]) end
end
return { redis.call('HGETALL', requests), int(time_ms()) }
