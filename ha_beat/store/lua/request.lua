-- Add a request to the leader, with its times and 0 attempts before it. Sending it again changes nothing.
-- KEYS: requests, answer
-- ARGV: id, request, lifetime in ms, wake channel, most requests that may wait
local answer = redis.call('GET', KEYS[2])
if answer then return { 'answered', answer } end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then return { 'full', '' } end
  local now = time_ms()
  redis.call('HSET', KEYS[1], ARGV[1], int(now) .. ' ' .. int(now + tonumber(ARGV[3])) .. ' 0 ' .. ARGV[2])
end
redis.pcall('PUBLISH', ARGV[4], 'request')
return { 'waiting', '' }
