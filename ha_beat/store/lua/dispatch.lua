-- Enqueue and record a batch atomically.
-- KEYS: lease, ledger, journal, requests, progress, busy
-- ARGV: epoch, nonce, gen, run id, journal size, operations as a MessagePack array with, for each,
--       [entry id, expected row, new row ('' removes it), request id, step, time in ms from which the message may be
--       enqueued (0 for any), ms for which the message keeps its entry busy, '0' if the message is refused while its
--       entry is busy, else '1', key of the message, journal records, commands as arrays of arguments]
-- An operation with a request id is one of that request's steps, numbered from 1 and done in order. It does not change
-- the entry's row. It is done at most once, and only while the request waits.
-- Returns {'fenced', code}, or {'done', number, kind, detail, ...} with three values for each operation that has
-- another answer than 'done': its number, counted from 1, the kind (see AnswerKind) and a detail. The detail is the row
-- for 'moved', a text for 'error' and 'partial', 'entry' for a paused entry, 'unreported' for 'overlap' if no worker
-- has reported an end of any message for the ms above, and '' for the others.
local lease, ledger, journal, requests, progress, busy = unpack(KEYS)
local epoch, nonce, gen, expected_run_id, journal_size, packed = unpack(ARGV)

-- The first phase writes nothing, because a script does not roll back.
local why = fence(lease, epoch, nonce)
if why then return { 'fenced', why } end
if redis.call('HGET', ledger, 'm:gen') ~= gen then return { 'fenced', 'other_ledger' } end -- guard: dispatch-gen
if another_server(expected_run_id) then return { 'fenced', 'other_server' } end -- guard: dispatch-run-id

local operations, fields = {}, {}
for i, part in ipairs(cmsgpack.unpack(packed)) do
  operations[i] = { id = part[1], expected = part[2], row = part[3], request = part[4], step = tonumber(part[5]),
    at_ms = tonumber(part[6]), busy_ms = tonumber(part[7]), overlaps = part[8] == '1', key = part[9], records = part[10],
    commands = part[11] }
  fields[i] = 'e:' .. part[1]
end

-- Rows by field, as this script leaves them.
local found, rows = redis.call('HMGET', ledger, unpack(fields)), {}
for i, field in ipairs(fields) do rows[field] = found[i] or '' end

local pause, entry_pauses = unpack(redis.call('HMGET', ledger, 'm:paused', 'm:paused_entries'), 1, 2)
local readable, paused_entries = pcall(cjson.decode, entry_pauses or '{}')
-- True if this entry is paused. A pause that has ended stays in the record until its last instant has its verdict.
local function entry_paused(id)
  local entry_pause = readable and type(paused_entries) == 'table' and paused_entries[id]
  return type(entry_pause) == 'table' and entry_pause.until_ms == 0
end

local now = time_ms()
-- A replica whose clock is ahead of the cluster's time must not fire early.
local latest = now + 2000
  + (tonumber(redis.call('HGET', lease, 'offset_ms')) or 0) -- guard: dispatch-leader-offset

-- Return the lines of the entry's other messages that have not ended. One that was sent too long ago counts as lost.
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

-- Return the answer of an operation that must not be done, or was done before; nil if it is to be done now.
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
    if pause then return 'paused', '' end -- guard: dispatch-paused
    if entry_paused(op.id) then return 'paused', 'entry' end -- guard: dispatch-entry-paused
    if not op.overlaps and #busy_lines(op) > 0 then -- guard: dispatch-overlap
      return 'overlap', unreported(op) and 'unreported' or ''
    end
  end
  return nil
end

-- Return the reason why a command cannot be executed, or nil.
local key_types = {}
local function wrong_type(command)
  if command[1] ~= 'LPUSH' then return nil end
  local key = command[2]
  -- If TYPE is not allowed, the push itself fails with the reason.
  key_types[key] = key_types[key] or redis.pcall('TYPE', key).ok or 'list'
  if key_types[key] ~= 'none' and key_types[key] ~= 'list' then return 'queue key ' .. key .. ' is a ' .. key_types[key] end
end

local function note_row(i, row)
  rows[fields[i]] = row -- guard: dispatch-batch-own-writes
end

local answers = { 'done' }
local function answer(i, kind, detail)
  local n = #answers
  answers[n + 1], answers[n + 2], answers[n + 3] = i, kind, detail
end

-- The second phase writes. A full or read-only server refuses this first write, before any message is sent.
redis.call('HSET', ledger, 'm:epoch', epoch) -- guard: dispatch-first-write

-- Execute the commands of an operation. Return 'done', 'error' if none was executed, or 'partial'.
local function execute(op)
  for c, command in ipairs(op.commands) do
    local reply = redis.pcall(unpack(command)) -- guard: dispatch-push-pcall
    if type(reply) == 'table' and reply.err then
      local failure = reply.err .. ' (at ' .. command[1] .. ' ' .. command[2] .. ')'
      return c == 1 and 'error' or 'partial', failure
    end
  end
  return 'done', ''
end

-- Add the line of a message that keeps its entry busy.
local function begin_busy(op)
  local lines = busy_lines(op)
  if #lines >= MOST_BUSY then table.remove(lines, 1) end
  lines[#lines + 1] = int(now) .. ' ' .. op.key
  redis.pcall('HSET', busy, 'e:' .. op.id, table.concat(lines, '\n'))
end

-- Execute and record one operation. Return its answer.
local function run(i, op)
  local kind, detail = execute(op)
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
    -- A fault in the record of busy entries must not fail a message that was enqueued.
    if op.row == '' and op.request == '' then redis.pcall('HDEL', busy, fields[i]) end
    if #op.commands > 0 and op.busy_ms > 0 then begin_busy(op) end
    append_trimmed(journal, ledger, journal_size, op.records)
  end
  return kind, detail
end

-- Most of a script's time goes into its calls. Messages for one queue that follow one another are therefore a group:
-- one command pushes them, and another writes their rows. `grouped` has the fields of their entries.
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
    append_trimmed(journal, ledger, journal_size, records)
  end
  push, members, grouped = {}, {}, {}
end

-- Add an operation to the group, if it is one push, writes a row and keeps no entry busy. Return whether it was added.
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
  local kind, detail = answered(op, rows[fields[i]])
  if not kind then
    for _, command in ipairs(op.commands) do
      detail = wrong_type(command) -- guard: dispatch-type-check
      if detail then kind = 'error' break end
    end
  end
  if not kind and not join_group(i, op) then
    send_group()
    kind, detail = run(i, op)
  end
  if kind and kind ~= 'done' then answer(i, kind, detail) end
end
send_group()
return answers
