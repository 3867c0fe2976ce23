-- Say what became of claimed occurrences.
-- KEYS: lease, ledger, journal, claims
-- ARGV: epoch, nonce ('' where whoever made the claim speaks of it, which no later term can forbid), journal size, n, then for
--       each: task id, claim, new state of the claim ('' removes it), entry id, new row ('' removes it), n, n rows that it
--       may replace, journal record or ''
-- Answers {'fenced', why} or {'done', 1 or 0 for each}.
local lease, ledger, journal, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if ARGV[2] ~= '' then
  local why = foreign(lease, ARGV[1], ARGV[2])
  if why then return { 'fenced', why } end
end

local at = 4
local function take()
  at = at + 1
  return ARGV[at]
end

local answers = { 'done' }
for _ = 1, tonumber(ARGV[4]) do
  local id, claim, state, entry, row = take(), take(), take(), take(), take()
  local replaces = {}
  for i = 1, tonumber(take()) do replaces[i] = take() end
  local record = take()
  local found = redis.call('HGET', claims, id)
  local ours = found == 'open ' .. claim or (found == 'uncertain ' .. claim and state == '')
  if ours then
    if state == '' then redis.call('HDEL', claims, id) else redis.call('HSET', claims, id, state .. ' ' .. claim) end
    local now = redis.call('HGET', ledger, 'e:' .. entry)
    for _, replaced in ipairs(replaces) do
      if now == replaced then
        if row == '' then redis.call('HDEL', ledger, 'e:' .. entry) else redis.call('HSET', ledger, 'e:' .. entry, row) end
      end
    end
    if record ~= '' then
      local n = redis.call('HINCRBY', ledger, 'm:journal', 1)
      redis.pcall('XADD', journal, 'MAXLEN', '~', ARGV[3], '*', 'n', n, 'd', record)
    end
  end
  answers[#answers + 1] = ours and 1 or 0
end
return answers
