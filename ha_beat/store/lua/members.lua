-- Write this replica's member record, and read the state of the cluster.
-- KEYS: members, lease, ledger, journal, dropped
-- ARGV: replica id ('' to write nothing), its record as JSON, '1' to read, '1' to remove old records, age in ms of an
--       old record, number of records above which old ones are removed in any case
-- Returns {time in ms}, and if it reads: {time in ms, lease, member records, fields of the ledger (gen, highest epoch,
-- counter of the journal, pause of the cluster, pauses of entries), length of the journal, number of dropped messages}.
local members, lease, ledger, journal, dropped = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local replica, record, read, clean, old_ms, most_records = unpack(ARGV)
local now = time_ms()
if replica ~= '' then
  -- A refused write is ignored: the caller needs the state.
  redis.pcall('HSET', members, replica, '{"seen_ms":' .. int(now) .. ',' .. string.sub(record, 2))
end
-- Without a leader, nothing else removes the records of replicas that crash again and again.
local cleans = clean == '1' or redis.call('HLEN', members) > tonumber(most_records)
local all = (cleans or read == '1') and redis.call('HGETALL', members)
if cleans then
  for i = 2, #all, 2 do
    local seen = tonumber(string.match(all[i], '"seen_ms":%s*(%d+)'))
    -- A record from the future was written before the server's clock was set back.
    if not seen or math.abs(now - seen) > tonumber(old_ms) then redis.pcall('HDEL', members, all[i - 1]) end
  end
end
if read ~= '1' then return { int(now) } end

-- The workers write this counter. A user may lack the right to read it.
local count = redis.pcall('GET', dropped)
return {
  int(now),
  redis.call('HGETALL', lease),
  all,
  redis.call('HMGET', ledger, 'm:gen', 'm:epoch', 'm:journal', 'm:paused', 'm:paused_entries'),
  redis.call('XLEN', journal),
  type(count) == 'string' and count or '0',
}
