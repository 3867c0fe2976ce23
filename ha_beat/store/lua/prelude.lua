-- Helpers that every script of this folder starts with.

-- Lua's own conversion writes 1.76e+15 for large numbers.
local function int(n)
  return string.format('%.0f', n)
end

-- Of a field that holds a whole number, unless somebody has tampered with it: then 0, so that it costs nobody the lead.
local function number(value)
  if value and #value <= 15 and string.find(value, '^%d+$') then return tonumber(value) end
  return 0
end

local function time_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- '' where INFO may not be called: the check is then void, never wrong.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then return '' end
  return string.match(info, 'run_id:(%x+)') or ''
end

-- Whether another server than that of the run id answers. Two users of one server need not both be allowed INFO.
local function another_server(expected)
  local this = run_id()
  return this ~= '' and expected ~= '' and this ~= expected
end

-- Subscribers of a presence channel; -1 where that can't be known.
local function subscribers(channel)
  if not channel or channel == '' then return -1 end
  local count = string.find(channel, '}:presence:shard:', 1, true) and 'SHARDNUMSUB' or 'NUMSUB'
  local reply = redis.pcall('PUBSUB', count, channel) -- guard: subscribers-pcall
  if type(reply) ~= 'table' or reply.err then return -1 end
  return tonumber(reply[2])
end

-- Add a record to the journal, or go on without: it must not cost what it tells of.
local function tell(journal, ledger, record)
  local n = redis.pcall('HINCRBY', ledger, 'm:journal', 1)
  if type(n) == 'number' then redis.pcall('XADD', journal, '*', 'n', n, 'd', cjson.encode(record)) end
end

-- Hands out ARGV from behind the first n, one by one or as a list that its length goes before.
local function reader(n)
  local at = n
  local function take()
    at = at + 1
    return ARGV[at]
  end
  local function take_list()
    local list = {}
    for i = 1, tonumber(take()) do list[i] = take() end
    return list
  end
  return take, take_list
end

-- Add records to a journal that is kept to about that size, or go on without: what they tell of has happened. A record
-- that is refused leaves a gap in the count.
local function append(journal, ledger, size, records)
  for _, record in ipairs(records) do
    local n = redis.pcall('HINCRBY', ledger, 'm:journal', 1)
    redis.pcall('XADD', journal, 'MAXLEN', '~', size, '*', 'n', type(n) == 'number' and n or 0, 'd', record) -- guard: journal-pcall
  end
end

-- The code that refuses (epoch, nonce), or nil if it holds the lease. `fence_reason` in lease.py maps the codes.
local function foreign(lease, epoch, nonce)
  local rec = redis.call('HMGET', lease, 'epoch', 'nonce', 'state')
  if not rec[1] then return 'no_lease' end
  if rec[1] ~= epoch -- guard: term-epoch
    or rec[2] ~= nonce -- guard: term-nonce
  then return 'other_term' end
  if rec[3] ~= 'held' then return 'released' end -- guard: term-held
  return nil
end
