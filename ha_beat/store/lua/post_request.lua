-- Add a request to the leader, with its times and 0 attempts before it. A repeated call changes nothing.
-- KEYS: requests, answer, progress
-- ARGV: request id, request, lifetime in ms, wake channel, most requests that may wait
-- Returns {'answered', answer}, {'full', ''} or {'waiting', ''}.
local requests, answer, progress = KEYS[1], KEYS[2], KEYS[3]
local id, request, lifetime_ms, wake, most = unpack(ARGV)

-- Without a leader, nothing else removes requests that have expired. Return how many are left.
local function remove_expired(now)
  local all, left = redis.call('HGETALL', requests), 0
  for i = 2, #all, 2 do
    local deadline = string.match(all[i], '^%d+ (%d+) ')
    if deadline and number(deadline) < now then
      redis.call('HDEL', requests, all[i - 1])
      redis.call('HDEL', progress, all[i - 1])
    else
      left = left + 1
    end
  end
  return left
end

local answered = redis.call('GET', answer)
if answered then return { 'answered', answered } end
if redis.call('HEXISTS', requests, id) == 0 then
  local now = time_ms()
  if redis.call('HLEN', requests) >= tonumber(most) and remove_expired(now) >= tonumber(most) then
    return { 'full', '' }
  end
  redis.call('HSET', requests, id, int(now) .. ' ' .. int(now + tonumber(lifetime_ms)) .. ' 0 ' .. request)
end
redis.pcall('PUBLISH', wake, 'request')
return { 'waiting', '' }
