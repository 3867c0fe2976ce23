-- Say that this replica is here, and look at the whole cluster in one go.
-- KEYS: members, lease, ledger, journal, dropped
-- ARGV: replica id ('' to look only), its record as JSON, whether to look ('1'), age in ms beyond which others' records
--       are removed ('' to leave them)
local members = KEYS[1]
local now = int(time_ms())
if ARGV[1] ~= '' then
  -- Whether a full or read-only server takes it is not worth an error: looking is what the caller needs.
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
-- Of the workers, who may be kept from counting.
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
