-- KEYS: lease
-- Answers {record, subscribers of its presence channel, the server's time in ms, its run id}. The run id is read only if
-- a takeover may follow, because INFO is slow.
local record = redis.call('HGETALL', KEYS[1])
local count = subscribers(redis.call('HGET', KEYS[1], 'presence'))
local server = ''
if count == 0 then server = run_id() end
return { record, count, int(time_ms()), server }
