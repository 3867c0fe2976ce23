-- Write the lease marker in the broker's Redis, unless it names another store.
-- KEYS: mark
-- ARGV: the store's gen, its place ('' if unknown), its name, the lease's lifetime in ms, the holder, and gen and n of an
--       abandoned marker that may be replaced ('' for none)
-- Returns {'kept'} or {'foreign', gen, n, place, name, lifetime, holder}
local was = redis.call('HMGET', KEYS[1], 'gen', 'n', 'place', 'name', 'ttl_ms', 'holder')
local same = was[1] == ARGV[1] or (ARGV[2] ~= '' and was[3] == ARGV[2])
local stale = was[1] == ARGV[6]
  and was[2] == ARGV[7] -- guard: mark-unmoved
if was[1] and not same and not stale then -- guard: mark-other-store
  return { 'foreign', was[1], was[2] or '0', was[3] or '', was[4] or '', was[5] or '0', was[6] or '' }
end
local n = int(number(was[2]) + 1)
redis.call('HSET', KEYS[1], 'gen', ARGV[1], 'n', n, 'place', ARGV[2], 'name', ARGV[3], 'ttl_ms', ARGV[4], 'holder', ARGV[5])
return { 'kept' }
