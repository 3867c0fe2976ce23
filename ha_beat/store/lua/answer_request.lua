-- Answer a request and change a field of the ledger, in one step.
-- KEYS: lease, ledger, journal, requests, answer, progress
-- ARGV: epoch, nonce, gen, request id, answer, lifetime of the answer in ms, journal size, journal record ('' for
--       none), field of the ledger ('' for none), its new value ('' removes it)
-- Returns {'fenced', code}, {'withdrawn', ''} if the request no longer waits, or {'answered', ''}.
local lease, ledger, journal, requests, answer_key, progress = unpack(KEYS)
local epoch, nonce, gen, id, answer, lifetime_ms, journal_size, record, field, value = unpack(ARGV)
local why = fence(lease, epoch, nonce)
if why then return { 'fenced', why } end
if redis.call('HGET', ledger, 'm:gen') ~= gen then return { 'fenced', 'other_ledger' } end
if redis.call('HEXISTS', requests, id) == 0 then return { 'withdrawn', '' } end

-- A full server refuses this first write.
redis.call('SET', answer_key, answer, 'PX', lifetime_ms)
if field ~= '' then
  if value == '' then redis.call('HDEL', ledger, field) else redis.call('HSET', ledger, field, value) end
end
redis.call('HDEL', requests, id)
redis.call('HDEL', progress, id)
if record ~= '' then append_trimmed(journal, ledger, journal_size, { record }) end
return { 'answered', '' }
