-- KEYS: lease
-- ARGV: digest of what the reader has
-- Answers {record, subscribers of its presence channel, the server's time in ms, its run id, digest of the first two}, or
-- only the time if the reader has the rest. The run id is read only if a takeover may follow, because INFO is slow.
local record = redis.call('HGETALL', KEYS[1])
local count = subscribers(redis.call('HGET', KEYS[1], 'presence'))
local server, digest = '', ''
if count == 0 then
  server = run_id()
elseif redis.sha1hex then -- fakeredis lacks it
  digest = redis.sha1hex(count .. '\n' .. table.concat(record, '\n'))
  if digest == ARGV[1] then return time_ms() end
end
return { record, count, int(time_ms()), server, digest }
