-- Write this replica's record, and read the state of the cluster.
-- KEYS: members, lease, ledger, journal, dropped
-- ARGV: replica id ('' to read only), its record as JSON, '1' to read, age in ms from which records are removed ('' for
--       none)
local members = KEYS[1]
local now = int(time_ms())
if ARGV[1] ~= '' then
  -- A refused write is ignored: the caller needs the state.
  redis.pcall('HSET', members, ARGV[1], '{"seen_ms":' .. now .. ',' .. string.sub(ARGV[2], 2))
end
if ARGV[3] ~= '1' then return { now } end

local all = redis.call('HGETALL', members)
if ARGV[4] ~= '' then
  for i = 2, #all, 2 do
    local seen = tonumber(string.match(all[i], '"seen_ms":%s*(%d+)'))
    if not seen or now - seen > tonumber(ARGV[4]) then redis.pcall('HDEL', members, all[i - 1]) end
  end
end
-- The workers write this counter, and may lack the right to.
local dropped = redis.pcall('GET', KEYS[5])
if type(dropped) ~= 'string' then dropped = '0' end
return {
  now,
  redis.call('HGETALL', KEYS[2]),
  all,
  redis.call('HMGET', KEYS[3], 'm:gen', 'm:epoch', 'm:journal', 'm:paused'),
  redis.call('XLEN', KEYS[4]),
  dropped,
}
