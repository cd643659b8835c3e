-- Grants permits of the global safety limit; the specification is forebay.quota.domain.safety.Grants.
--
-- KEYS[1] hash  now        latest time seen, ms; it never goes back
--               <bucket>   integer: permits granted in that bucket that were not given back
-- ARGV[1] the present in ms since the epoch, 0 for this server's own time   [2] limit   [3] permits asked for
--     [4] permits given back   [5] the bucket they were granted in   [6] ms of a bucket   [7] buckets that count beside the present
-- Returns permits granted, the present bucket, ms until some of what counts counts no longer.

local GRANTS = KEYS[1]
local time, limit, asked, returned, returned_to, bucket_ms, span = unpack(ARGV)

local now = tonumber(time)
if now == 0 then
  local server = redis.call('TIME')
  now = server[1] * 1000 + math.floor(server[2] / 1000)
end
now = math.max(now, tonumber(redis.call('HGET', GRANTS, 'now')) or 0)
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
redis.call('HSET', GRANTS, 'now', now)

local oldest = bucket
for at, taken in pairs(granted) do
  if taken > 0 then
    oldest = math.min(oldest, at)
  end
end
return { permits, bucket, (oldest + span + 1) * bucket_ms - now }
