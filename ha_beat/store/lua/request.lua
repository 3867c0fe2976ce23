-- Add a request to the leader, with its times and 0 attempts before it. Sending it again changes nothing.
-- KEYS: requests, answer, progress
-- ARGV: id, request, lifetime in ms, wake channel, most requests that may wait
local answer = redis.call('GET', KEYS[2])
if answer then return { 'answered', answer } end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  local now = time_ms()
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
    -- Without a leader, nothing else removes requests that have expired.
    local all, left = redis.call('HGETALL', KEYS[1]), 0
    for i = 2, #all, 2 do
      local deadline = string.match(all[i], '^%d+ (%d+) ')
      if deadline and number(deadline) < now then
        redis.call('HDEL', KEYS[1], all[i - 1])
        redis.call('HDEL', KEYS[3], all[i - 1])
      else
        left = left + 1
      end
    end
    if left >= tonumber(ARGV[5]) then return { 'full', '' } end
  end
  redis.call('HSET', KEYS[1], ARGV[1], int(now) .. ' ' .. int(now + tonumber(ARGV[3])) .. ' 0 ' .. ARGV[2])
end
redis.pcall('PUBLISH', ARGV[4], 'request')
return { 'waiting', '' }
