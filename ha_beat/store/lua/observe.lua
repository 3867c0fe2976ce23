-- Read the lease, and whether its holder is present.
-- KEYS: lease
-- ARGV: digest that the last answer had
-- Returns {record, number of subscribers of its presence channel (-1 if unknown), time in ms, run id, digest of the
-- first two}, or only the time in ms if the digest is the same. The run id is read only without a subscriber, when a
-- takeover may follow, because INFO is slow. There is no digest then.
local lease = KEYS[1]
local known_digest = ARGV[1]
local record = redis.call('HGETALL', lease)
local count = subscribers(redis.call('HGET', lease, 'presence'))
local server, digest = '', ''
if count == 0 then
  server = run_id()
elseif redis.sha1hex then -- fakeredis lacks it
  digest = redis.sha1hex(count .. '\n' .. table.concat(record, '\n'))
  if digest == known_digest then return time_ms() end
end
return { record, count, int(time_ms()), server, digest }
