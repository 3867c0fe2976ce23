-- Answer a request and change a meta field of the ledger, in one step.
-- KEYS: lease, ledger, journal, requests, answer, progress
-- ARGV: epoch, nonce, gen, id, answer, lifetime of the answer in ms, journal size, journal record ('' for none),
--       meta field ('' for none), its new value ('' removes it)
-- Answers {'fenced', code}, {'withdrawn'} (or answered before) or {'answered'}.
local ledger, requests = KEYS[2], KEYS[4]
local why = fence(KEYS[1], ARGV[1], ARGV[2])
if why then return { 'fenced', why } end
if redis.call('HGET', ledger, 'm:gen') ~= ARGV[3] then return { 'fenced', 'other_ledger' } end
if redis.call('HEXISTS', requests, ARGV[4]) == 0 then return { 'withdrawn', '' } end
-- A full server refuses this first write.
redis.call('SET', KEYS[5], ARGV[5], 'PX', ARGV[6])
if ARGV[9] ~= '' then
  if ARGV[10] == '' then
    redis.call('HDEL', ledger, ARGV[9])
  else
    redis.call('HSET', ledger, ARGV[9], ARGV[10])
  end
end
redis.call('HDEL', requests, ARGV[4])
redis.call('HDEL', KEYS[6], ARGV[4])
if ARGV[8] ~= '' then append_trimmed(KEYS[3], ledger, ARGV[7], { ARGV[8] }) end
return { 'answered', '' }
