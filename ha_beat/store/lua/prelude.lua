-- Helpers that stand before the source of every script.

-- Return a whole number as text. Lua's own conversion writes 1.76e+15 for large numbers.
local function int(n)
  return string.format('%.0f', n)
end

-- Parse a whole number. An invalid value counts as 0, so that it does not stop the election.
local function number(value)
  if value and #value <= 15 and string.find(value, '^%d+$') then return tonumber(value) end
  return 0
end

-- Return the server's time in ms since the Unix epoch.
local function time_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Return the server's run id, or '' if the user may not call INFO: the run id is then not checked.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then return '' end
  return string.match(info, 'run_id:(%x+)') or ''
end

-- True if another server than the expected one answers. False if either run id is unknown.
local function another_server(expected)
  local this = run_id()
  return this ~= '' and expected ~= '' and this ~= expected
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

-- Return the number of subscribers of a presence channel, -1 if it is unknown.
local function subscribers(channel)
  if not channel or channel == '' then return -1 end
  local count = string.find(channel, '}:presence:shard:', 1, true) and 'SHARDNUMSUB' or 'NUMSUB'
  local reply = redis.pcall('PUBSUB', count, channel) -- guard: subscribers-pcall
  if type(reply) ~= 'table' or reply.err then return -1 end
  return tonumber(reply[2])
end

-- Add one record to the journal. Errors are ignored: the change that it records must not fail.
local function append_record(journal, ledger, record)
  local n = redis.pcall('HINCRBY', ledger, 'm:journal', 1)
  if type(n) == 'number' then redis.pcall('XADD', journal, '*', 'n', n, 'd', cjson.encode(record)) end
end

-- Add encoded records to the journal and trim it to about `size` records. Errors are ignored, because what the records
-- report has happened already. A refused record leaves a gap in the numbers.
local function append_trimmed(journal, ledger, size, records)
  if #records == 0 then return end
  local last = redis.pcall('HINCRBY', ledger, 'm:journal', #records)
  for i, record in ipairs(records) do
    local n = type(last) == 'number' and last - #records + i or 0
    redis.pcall('XADD', journal, 'MAXLEN', '~', size, '*', 'n', n, 'd', record) -- guard: journal-pcall
  end
end

-- The messages that keep an entry busy are one field of the hash `busy`, with a line for each: the time in ms at which
-- it was sent, and its key. An entry keeps at most this many lines.
local MOST_BUSY = 100

-- Return the lines of a field without the one of the message `without`, and the time and key of each line.
local function busy_without(raw, without)
  local lines, messages = {}, {}
  for line in string.gmatch(type(raw) == 'string' and raw or '', '[^\n]+') do
    local sent, key = string.match(line, '^(%d+) (.*)$')
    if key and key ~= without then -- guard: overlap-other-messages
      lines[#lines + 1], messages[#messages + 1] = line, { sent = number(sent), key = key }
    end
  end
  return lines, messages
end

-- Remove the line of a message that has ended or was not sent.
local function end_busy(busy, field, key)
  local raw = redis.pcall('HGET', busy, field)
  if type(raw) ~= 'string' then return end
  local left = busy_without(raw, key)
  if #left == 0 then redis.pcall('HDEL', busy, field) else redis.pcall('HSET', busy, field, table.concat(left, '\n')) end
end
