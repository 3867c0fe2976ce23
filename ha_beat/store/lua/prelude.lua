-- Helpers that are put in front of every script.

-- Lua's own conversion writes 1.76e+15 for large numbers.
local function int(n)
  return string.format('%.0f', n)
end

-- Parse a whole number. An invalid value counts as 0, so that it does not stop the election.
local function number(value)
  if value and #value <= 15 and string.find(value, '^%d+$') then return tonumber(value) end
  return 0
end

local function time_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Return the server's run id, or '' if the user may not call INFO: the check is then skipped.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then return '' end
  return string.match(info, 'run_id:(%x+)') or ''
end

-- True if another server than the expected one answers. If either run id is unknown, the check is skipped.
local function another_server(expected)
  local this = run_id()
  return this ~= '' and expected ~= '' and this ~= expected
end

-- Count the subscribers of a presence channel; -1 if the count is unknown.
local function subscribers(channel)
  if not channel or channel == '' then return -1 end
  local count = string.find(channel, '}:presence:shard:', 1, true) and 'SHARDNUMSUB' or 'NUMSUB'
  local reply = redis.pcall('PUBSUB', count, channel) -- guard: subscribers-pcall
  if type(reply) ~= 'table' or reply.err then return -1 end
  return tonumber(reply[2])
end

-- Add a record to the journal. A failure is ignored: what it records must not fail with it.
local function append_record(journal, ledger, record)
  local n = redis.pcall('HINCRBY', ledger, 'm:journal', 1)
  if type(n) == 'number' then redis.pcall('XADD', journal, '*', 'n', n, 'd', cjson.encode(record)) end
end

-- Messages that keep an entry busy, a line for each: the time at which it was sent, and its key. A busy entry has few.
local MOST_BUSY = 100

-- Return those lines without the one of a key, and the time and key of each.
local function busy_without(raw, without)
  local lines, found = {}, {}
  for line in string.gmatch(type(raw) == 'string' and raw or '', '[^\n]+') do
    local sent, key = string.match(line, '^(%d+) (.*)$')
    if key and key ~= without then -- guard: overlap-other-messages
      lines[#lines + 1], found[#found + 1] = line, { sent = number(sent), key = key }
    end
  end
  return lines, found
end

-- Remove the line of a message that has ended or was not sent.
local function end_busy(busy, entry, key)
  local raw = redis.pcall('HGET', busy, entry)
  if type(raw) ~= 'string' then return end
  local left = busy_without(raw, key)
  if #left == 0 then redis.pcall('HDEL', busy, entry) else redis.pcall('HSET', busy, entry, table.concat(left, '\n')) end
end

-- Return readers of ARGV behind the first n: one for a single value, one for a list with its length in front.
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

-- Add records to the journal and trim it to about that size. A failure is ignored, because what they record has
-- happened. A record that is refused leaves a gap in the count.
local function append_trimmed(journal, ledger, size, records)
  if #records == 0 then return end
  local last = redis.pcall('HINCRBY', ledger, 'm:journal', #records)
  for i, record in ipairs(records) do
    local n = type(last) == 'number' and last - #records + i or 0
    redis.pcall('XADD', journal, 'MAXLEN', '~', size, '*', 'n', n, 'd', record) -- guard: journal-pcall
  end
end

-- Return the code that refuses (epoch, nonce), or nil if it holds the lease. `fence_reason` in lease.py maps the codes.
local function fence(lease, epoch, nonce)
  local rec = redis.call('HMGET', lease, 'epoch', 'nonce', 'state')
  if not rec[1] then return 'no_lease' end
  if rec[1] ~= epoch -- guard: term-epoch
    or rec[2] ~= nonce -- guard: term-nonce
  then return 'other_term' end
  if rec[3] ~= 'held' then return 'released' end -- guard: term-held
  return nil
end
