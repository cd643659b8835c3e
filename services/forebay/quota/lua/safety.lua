-- Grants permits of the global safety limit; the specification is forebay.quota.domain.safety.Grants.
--
-- KEYS[1] hash  now, clock     the timeline in ms, and what the server's clock read then
--               <bucket>       integer: permits granted in that bucket that were not given back
-- ARGV[1] what the clock reads in ms since the epoch, 0 for this server's own   [2] limit   [3] permits asked for
--     [4] permits given back   [5] the bucket they were granted in   [6] ms of a bucket   [7] buckets that count beside the present
-- Returns permits granted, the present bucket, ms until some of what counts counts no longer.

local GRANTS = KEYS[1]
local time, limit, asked, returned, returned_to, bucket_ms, span = unpack(ARGV)

local clock = tonumber(time)
if clock == 0 then
  local server = redis.call('TIME')
  clock = server[1] * 1000 + math.floor(server[2] / 1000)
end
local latest, read = unpack(redis.call('HMGET', GRANTS, 'now', 'clock'))
latest = tonumber(latest) or clock
local now = latest + math.max(0, clock - (tonumber(read) or latest))
local bucket = math.floor(now / bucket_ms)

local granted = {}
local stored = redis.call('HGETALL', GRANTS)
for i = 1, #stored, 2 do
  local at = tonumber(stored[i])
  if at and at >= bucket - span then
    granted[at] = tonumber(stored[i + 1])
  elseif at then
    redis.call('HDEL', GRANTS, stored[i])
  end
end

if granted[tonumber(returned_to)] then
  granted[tonumber(returned_to)] = redis.call('HINCRBY', GRANTS, returned_to, 0 - returned)
end
local used = 0
for _, permits in pairs(granted) do
  used = used + permits
end
local permits = math.max(0, math.min(tonumber(asked), limit - used))
granted[bucket] = redis.call('HINCRBY', GRANTS, bucket, permits)
redis.call('HSET', GRANTS, 'now', now, 'clock', clock)

local oldest = bucket
for at, taken in pairs(granted) do
  if taken > 0 then
    oldest = math.min(oldest, at)
  end
end
return { permits, bucket, (oldest + span + 1) * bucket_ms - now }
