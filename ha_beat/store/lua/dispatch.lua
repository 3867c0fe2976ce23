-- Enqueue and record a batch atomically.
-- KEYS: lease, ledger, journal, requests, progress, busy
-- ARGV: epoch, nonce, gen, run id, journal size, operations as a MessagePack array with, for each,
--       [entry id, expected row, new row ('' for none), request id, step, due instant in ms or 0, ms for which the
--       message keeps its entry busy, '0' if a busy entry refuses the message, else '1', key of the message,
--       journal records, commands as arrays of arguments]
-- An operation with a request id is one of that request's steps, numbered from 1 and done in order. It leaves the
-- entry's row alone, and is done at most once, while the request waits.
-- Returns {'fenced', code}, or {'done', number, kind, detail, ...} with its number, counted from 1, and two values for
-- each operation that has another answer than 'done' (see AnswerKind): the detail is the row for 'moved', a text for
-- 'error' and 'partial', 'entry' for a paused entry, 'unreported' for 'overlap' if no worker can have received the
-- message, and '' for the others.
local lease, ledger, journal, requests, progress, busy = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]

-- The first phase writes nothing, because a script does not roll back.
local why = fence(lease, ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
if redis.call('HGET', ledger, 'm:gen') ~= ARGV[3] then return { 'fenced', 'other_ledger' } end -- guard: dispatch-gen
if another_server(ARGV[4]) then return { 'fenced', 'other_server' } end -- guard: dispatch-run-id

local operations, fields = {}, {}
for i, part in ipairs(cmsgpack.unpack(ARGV[6])) do
  operations[i] = { id = part[1], expected = part[2], row = part[3], request = part[4], step = tonumber(part[5]),
    at_ms = tonumber(part[6]), busy_ms = tonumber(part[7]), overlaps = part[8] == '1', key = part[9], records = part[10],
    commands = part[11] }
  fields[i] = 'e:' .. part[1]
end
local rows = redis.call('HMGET', ledger, unpack(fields))
local standing = {}
for i, field in ipairs(fields) do standing[field] = rows[i] or '' end
local pauses = redis.call('HMGET', ledger, 'm:paused', 'm:paused_entries')
local readable, paused_entries = pcall(cjson.decode, pauses[2] or '{}')
-- True if this entry is paused. A pause that has ended stays in the record until its last instant has its verdict.
local function entry_paused(id)
  local pause = readable and type(paused_entries) == 'table' and paused_entries[id]
  return type(pause) == 'table' and pause.until_ms == 0
end

-- A replica whose clock is ahead of the cluster's time must not fire early.
local latest = time_ms() + 2000
  + (tonumber(redis.call('HGET', lease, 'offset_ms')) or 0) -- guard: dispatch-leader-offset

-- Return the lines of the entry's other messages that have not ended. One that was sent too long ago counts as lost.
local now = time_ms()
local function busy_lines(op)
  local lines, messages = busy_without(redis.pcall('HGET', busy, 'e:' .. op.id), op.key)
  local left = {}
  for i, message in ipairs(messages) do
    if math.abs(now - message.sent) < op.busy_ms then -- guard: overlap-timeout
      left[#left + 1] = lines[i]
    end
  end
  return left
end

-- True if no worker has reported anything for longer than the entry's message may take.
local function unreported(op)
  local at = redis.pcall('HGET', busy, 'm:reported')
  return now - number(type(at) == 'string' and at) >= op.busy_ms
end

-- The answer of an operation that must not be done, or was done before; nil if it is to be done now.
local function answered(op, row)
  if op.request ~= '' then
    if redis.call('HEXISTS', requests, op.request) == 0 then return 'withdrawn', '' end -- guard: dispatch-request-withdrawn
    if number(redis.call('HGET', progress, op.request)) >= op.step then return 'mine', '' end -- guard: dispatch-step-once
    return nil
  end
  if row ~= op.expected then -- guard: dispatch-compare
    if row == op.row then return 'mine', '' end -- guard: dispatch-own-row
    return 'moved', row
  end
  if op.at_ms > latest then return 'error', 'the due instant is ahead of the clock of Redis' end -- guard: dispatch-not-early
  if #op.commands > 0 then
    if pauses[1] then return 'paused', '' end -- guard: dispatch-paused
    if entry_paused(op.id) then return 'paused', 'entry' end -- guard: dispatch-entry-paused
    if not op.overlaps and #busy_lines(op) > 0 then -- guard: dispatch-overlap
      return 'overlap', unreported(op) and 'unreported' or ''
    end
  end
  return nil
end

local kinds = {}
local function wrong_type(command)
  if command[1] ~= 'LPUSH' then return nil end
  local key = command[2]
  -- If TYPE is not allowed, the push itself fails with the reason.
  kinds[key] = kinds[key] or redis.pcall('TYPE', key).ok or 'list'
  if kinds[key] ~= 'none' and kinds[key] ~= 'list' then return 'queue key ' .. key .. ' is a ' .. kinds[key] end
end

local function note_row(i, row)
  standing[fields[i]] = row -- guard: dispatch-batch-own-writes
end

-- A full or read-only server refuses this write, before any message is sent.
redis.call('HSET', ledger, 'm:epoch', ARGV[1]) -- guard: dispatch-first-write

local function run(op)
  for c, command in ipairs(op.commands) do
    local reply = redis.pcall(unpack(command)) -- guard: dispatch-push-pcall
    if type(reply) == 'table' and reply.err then
      local failure = reply.err .. ' (at ' .. command[1] .. ' ' .. command[2] .. ')'
      if c == 1 then return 'error', failure end
      return 'partial', failure
    end
  end
  return 'done', ''
end

local answers = { 'done' }
local function answer(i, kind, detail)
  local n = #answers
  answers[n + 1], answers[n + 2], answers[n + 3] = i, kind, detail
end

-- Messages for one queue that follow one another are pushed by one command, and their rows are written by another:
-- most of a script's time goes into its calls. `grouped` are the fields of their entries.
local push, members, grouped = {}, {}, {}
local function send_group()
  if #members == 0 then return end
  local reply = redis.pcall(unpack(push)) -- guard: dispatch-group-pcall
  local failure = type(reply) == 'table' and reply.err
  local written, records = {}, {}
  for _, i in ipairs(members) do
    local op = operations[i]
    if failure then -- guard: dispatch-group-not-recorded
      answer(i, 'error', failure .. ' (at ' .. push[1] .. ' ' .. push[2] .. ')')
    else
      written[#written + 1], written[#written + 2] = fields[i], op.row
      note_row(i, op.row)
      for _, record in ipairs(op.records) do records[#records + 1] = record end
    end
  end
  if #written > 0 then
    redis.call('HSET', ledger, unpack(written))
    append_trimmed(journal, ledger, ARGV[5], records)
  end
  push, members, grouped = {}, {}, {}
end

-- Add a message to the group, if it is one push, writes a row and keeps no entry busy.
local function join_group(i, op)
  local command = op.commands[1]
  if #op.commands ~= 1 or command[1] ~= 'LPUSH' or op.request ~= '' or op.row == '' or op.busy_ms > 0 then return false end
  if push[2] ~= command[2] then
    send_group()
    push = { 'LPUSH', command[2] }
  end
  push[#push + 1], members[#members + 1], grouped[fields[i]] = command[3], i, true
  return true
end

for i, op in ipairs(operations) do
  if grouped[fields[i]] then send_group() end -- guard: dispatch-group-once
  local kind, detail = answered(op, standing[fields[i]])
  if not kind then
    for _, command in ipairs(op.commands) do
      detail = wrong_type(command) -- guard: dispatch-type-check
      if detail then kind = 'error' break end
    end
  end
  if not kind and not join_group(i, op) then
    send_group()
    kind, detail = run(op)
    if kind ~= 'error' then -- guard: dispatch-error-not-recorded
      if op.request ~= '' then -- guard: dispatch-request-no-row
        redis.call('HSET', progress, op.request, op.step)
      elseif op.row == '' then
        -- The operation has no message, so a refusal here leaves nothing half done.
        local removed = redis.pcall('HDEL', ledger, fields[i])
        if type(removed) == 'table' then kind, detail = 'error', removed.err else note_row(i, '') end
      else
        redis.call('HSET', ledger, fields[i], op.row)
        note_row(i, op.row)
      end
      -- Nothing that is only about overlaps may fail a message that was enqueued.
      if op.row == '' and op.request == '' then redis.pcall('HDEL', busy, 'e:' .. op.id) end
      if #op.commands > 0 and op.busy_ms > 0 then
        local lines = busy_lines(op)
        if #lines >= MOST_BUSY then table.remove(lines, 1) end
        lines[#lines + 1] = int(now) .. ' ' .. op.key
        redis.pcall('HSET', busy, 'e:' .. op.id, table.concat(lines, '\n'))
      end
      append_trimmed(journal, ledger, ARGV[5], op.records)
    end
  end
  if kind and kind ~= 'done' then answer(i, kind, detail) end
end
send_group()
return answers
