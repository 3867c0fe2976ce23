-- Write the lease marker in the broker's Redis, unless it names another store.
-- KEYS: mark
-- ARGV: gen of the store's ledger, place of the store ('' if unknown), its name, ttl of the lease in ms, holder, then
--       gen and n of an abandoned marker that may be replaced ('' for none)
-- Returns {'kept'} or {'foreign', gen, n, place, name, ttl in ms, holder}.
local mark = KEYS[1]
local gen, place, name, ttl_ms, holder, abandoned_gen, abandoned_n = unpack(ARGV)
local was_gen, was_n, was_place, was_name, was_ttl_ms, was_holder =
  unpack(redis.call('HMGET', mark, 'gen', 'n', 'place', 'name', 'ttl_ms', 'holder'), 1, 6)
local same_store = was_gen == gen or (place ~= '' and was_place == place)
local abandoned = was_gen == abandoned_gen
  and was_n == abandoned_n -- guard: mark-unmoved
if was_gen and not same_store and not abandoned then -- guard: mark-other-store
  return { 'foreign', was_gen, was_n or '0', was_place or '', was_name or '', was_ttl_ms or '0', was_holder or '' }
end
redis.call('HSET', mark, 'gen', gen, 'n', int(number(was_n) + 1), 'place', place, 'name', name, 'ttl_ms', ttl_ms,
  'holder', holder)
return { 'kept' }
