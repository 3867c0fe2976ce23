-- Return all waiting requests and the server's time in ms.
-- KEYS: requests
return { redis.call('HGETALL', KEYS[1]), int(time_ms()) }
