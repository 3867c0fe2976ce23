-- KEYS: requests
return { redis.call('HGETALL', KEYS[1]), int(time_ms()) }
