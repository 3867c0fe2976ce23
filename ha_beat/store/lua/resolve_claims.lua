-- Resolve claims: remove each or mark it as uncertain or unsent, and write the entry's row and the journal records.
-- KEYS: lease, ledger, journal, claims, busy
-- ARGV: epoch, nonce (both '' if the process that made the claims reports what the broker answered; no later term may
--       refuse that), journal size, n, then for each claim: its field, the claim, its new state ('' removes it), entry
--       id, new row ('' removes it), 1 if the message was certainly not sent, n, n rows that it may replace, n, n journal records
-- Returns {'fenced', code} or {'done', 1 or 0 for each claim}: 0 if it was resolved before.
local lease, ledger, journal, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if ARGV[2] ~= '' then
  local why = fence(lease, ARGV[1], ARGV[2])
  if why then return { 'fenced', why } end -- guard: resolve-own-term
end

local take, take_list = reader(4)

local answers = { 'done' }
for _ = 1, tonumber(ARGV[4]) do
  local field, claim, state, entry, row, unsent = take(), take(), take(), 'e:' .. take(), take(), take() == '1'
  local replaces, records = take_list(), take_list()
  local found = redis.call('HGET', claims, field)
  -- The process that made a claim may resolve it after a newer term has marked it as uncertain.
  local open = found == 'open ' .. claim
    or (found == 'uncertain ' .. claim and state == '') -- guard: resolve-late-confirmation
    -- A leader takes back what the process that made the claim has marked as unsent.
    or (found == 'unsent ' .. claim and state == '' and ARGV[2] ~= '') -- guard: resolve-unsent
  if open then
    if state == '' then redis.call('HDEL', claims, field) else redis.call('HSET', claims, field, state .. ' ' .. claim) end
    local now = redis.call('HGET', ledger, entry)
    for _, replaced in ipairs(replaces) do
      if now == replaced then -- guard: resolve-row-unmoved
        if row == '' then redis.call('HDEL', ledger, entry) else redis.call('HSET', ledger, entry, row) end
        break
      end
    end
    if unsent then -- guard: overlap-unsent
      end_busy(KEYS[5], entry, field)
    end
    append_trimmed(journal, ledger, ARGV[3], records)
  end
  answers[#answers + 1] = open and 1 or 0
end
return answers
