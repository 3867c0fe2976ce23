-- Reader of MessagePack for fakeredis, which lacks Redis' own library: arrays and strings, as ha_beat packs them.
local function read(packed, at)
  local kind, a, b, c, d = string.byte(packed, at, at + 4)
  local length = ((a * 256 + b) * 256 + c) * 256 + d
  at = at + 5
  if kind == 0xdb then return string.sub(packed, at, at + length - 1), at + length end
  assert(kind == 0xdd, 'neither an array nor a string')
  local list = {}
  for i = 1, length do list[i], at = read(packed, at) end
  return list, at
end

return { unpack = function(packed) return (read(packed, 1)) end }
