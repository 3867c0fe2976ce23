-- Resolve claims: remove each or mark it as uncertain or unsent, and write the entry's row and the journal records.
-- KEYS: lease, ledger, journal, claims, busy
-- ARGV: epoch, nonce (both '' if the process that made the claims reports the broker's answers, which no later term may
--       refuse), journal size, number of claims, then for each claim: its field, the claim, its new state ('' removes
--       it), entry id, new row ('' removes it), '1' if the message was certainly not sent, the rows that the new one
--       may replace, the journal records. In front of both lists stands their length.
-- Returns {'fenced', code} or {'done', 1 or 0 for each claim}: 0 if it was resolved before.
local lease, ledger, journal, claims, busy = unpack(KEYS)
local epoch, nonce, journal_size, count = unpack(ARGV, 1, 4)
local under_a_term = nonce ~= ''
if under_a_term then
  local why = fence(lease, epoch, nonce)
  if why then return { 'fenced', why } end -- guard: resolve-own-term
end

local at = 4
local function take()
  at = at + 1
  return ARGV[at]
end

local function take_list()
  local list = {}
  for i = 1, tonumber(take()) do list[i] = take() end
  return list
end

local answers = { 'done' }
for _ = 1, tonumber(count) do
  local field, claim, state, entry, row, unsent = take(), take(), take(), 'e:' .. take(), take(), take() == '1'
  local replaceable, records = take_list(), take_list()
  local found = redis.call('HGET', claims, field)
  -- The process that made a claim may resolve it after a newer term has marked it as uncertain.
  local open = found == 'open ' .. claim
    or (found == 'uncertain ' .. claim and state == '') -- guard: resolve-late-confirmation
    -- A leader takes back a claim that the process which made it has marked as unsent.
    or (found == 'unsent ' .. claim and state == '' and under_a_term) -- guard: resolve-unsent
  if open then
    if state == '' then redis.call('HDEL', claims, field) else redis.call('HSET', claims, field, state .. ' ' .. claim) end
    local now = redis.call('HGET', ledger, entry)
    for _, replaced in ipairs(replaceable) do
      if now == replaced then -- guard: resolve-row-unmoved
        if row == '' then redis.call('HDEL', ledger, entry) else redis.call('HSET', ledger, entry, row) end
        break
      end
    end
    if unsent then -- guard: overlap-unsent
      end_busy(busy, entry, field)
    end
    append_trimmed(journal, ledger, journal_size, records)
  end
  answers[#answers + 1] = open and 1 or 0
end
return answers
