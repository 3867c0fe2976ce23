-- KEYS: lease
-- The record as it stands, how many subscribers its presence channel has, the
-- server's time, and (only where a takeover may follow: INFO is not free) its run id.
local record = redis.call('HGETALL', KEYS[1])
local count = subscribers(redis.call('HGET', KEYS[1], 'presence'))
local server = ''
if count == 0 then server = run_id() end
return { record, count, int(time_ms()), server }
