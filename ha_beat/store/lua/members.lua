-- Write this replica's record, and read the state of the cluster.
-- KEYS: members, lease, ledger, journal, dropped
-- ARGV: replica id ('' to read only), its record as JSON, '1' to read, '1' to remove old records, age in ms of an old
--       record, number of records above which old ones are removed in any case
local members = KEYS[1]
local now = int(time_ms())
if ARGV[1] ~= '' then
  -- A refused write is ignored: the caller needs the state.
  redis.pcall('HSET', members, ARGV[1], '{"seen_ms":' .. now .. ',' .. string.sub(ARGV[2], 2))
end
-- Without a leader, replicas that crash again and again must not leave records without end.
local clean = ARGV[4] == '1' or redis.call('HLEN', members) > tonumber(ARGV[6])
local all = (clean or ARGV[3] == '1') and redis.call('HGETALL', members)
if clean then
  for i = 2, #all, 2 do
    local seen = tonumber(string.match(all[i], '"seen_ms":%s*(%d+)'))
    -- A record from the future is one from before the server's clock stepped back.
    if not seen or math.abs(now - seen) > tonumber(ARGV[5]) then redis.pcall('HDEL', members, all[i - 1]) end
  end
end
if ARGV[3] ~= '1' then return { now } end

-- The workers write this counter, and may lack the right to.
local dropped = redis.pcall('GET', KEYS[5])
if type(dropped) ~= 'string' then dropped = '0' end
return {
  now,
  redis.call('HGETALL', KEYS[2]),
  all,
  redis.call('HMGET', KEYS[3], 'm:gen', 'm:epoch', 'm:journal', 'm:paused', 'm:paused_entries'),
  redis.call('XLEN', KEYS[4]),
  dropped,
}
