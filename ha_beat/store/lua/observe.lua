-- KEYS: lease
-- ARGV: digest of the record that the reader has
-- Answers {record, subscribers of its presence channel, the server's time in ms, its run id, digest of the record}. The
-- record is empty if the reader has it. The run id is read only if a takeover may follow, because INFO is slow.
local record = redis.call('HGETALL', KEYS[1])
local count = subscribers(redis.call('HGET', KEYS[1], 'presence'))
local server = ''
if count == 0 then server = run_id() end
local digest = redis.sha1hex and redis.sha1hex(table.concat(record, '\n')) or ''  -- fakeredis lacks it
if digest ~= '' and digest == ARGV[1] then record = {} end
return { record, count, int(time_ms()), server, digest }
