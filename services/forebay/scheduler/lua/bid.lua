-- Decides on a bid for the lease of a lending domain; the specification is forebay.scheduler.domain.lease.Tenure.
--
-- KEYS[1] hash  id, incarnation  the holder; address  where it listens
--               epoch            of the last term; stays when the lease has expired
--               until            when the lease expires, µs; 0 when it was given up
--               checkpoint       what the leader leaves to the next
-- ARGV[1] the present in µs since the epoch, 0 for this server's own time   [2] µs of a lease   [3] id   [4] incarnation
--     [5] address   [6] epoch that the bidder leads in, 0 for none   [7] the highest that it has heard of
--     [8] until when it would take a free lease, µs, 0 for not at all   [9] 1 if a checkpoint is given   [10] the checkpoint
-- Returns epoch of the holder, its address, 1 if that is the bidder, the present, and the checkpoint if the bidder begins a term.
-- Numbers of µs go in and out as text: Lua prints a number with 14 digits.

local LEASE = KEYS[1]
local time, length, id, incarnation, address, bid_epoch, latest, takes_until, given, checkpoint = unpack(ARGV)

local now = tonumber(time)
if now == 0 then
  local server = redis.call('TIME')
  now = server[1] * 1000000 + server[2]
end

local stored = redis.call('HMGET', LEASE, 'id', 'incarnation', 'epoch', 'until', 'address')
local last = math.max(tonumber(stored[3]) or 0, latest)
local left = (tonumber(stored[4]) or 0) - now
local held = left > 0 and tonumber(stored[3]) == last

local epoch
if held and stored[1] == id and stored[2] == incarnation then
  epoch = stored[3]
elseif not held and tonumber(bid_epoch) > 0 and tonumber(bid_epoch) >= last then
  epoch = bid_epoch
elseif now < tonumber(takes_until) and (not held or (stored[1] == id and tonumber(incarnation) > tonumber(stored[2]))) then
  epoch = string.format('%.0f', math.max(last + 1, now))
elseif held then
  if left > tonumber(length) then
    redis.call('HSET', LEASE, 'until', string.format('%.0f', now + length))
  end
  return { stored[3], stored[5], 0, string.format('%.0f', now), '' }
else
  return { '0', '', 0, string.format('%.0f', now), '' }
end

local begins = epoch ~= bid_epoch
redis.call('HSET', LEASE, 'id', id, 'incarnation', incarnation, 'address', address, 'epoch', epoch,
  'until', string.format('%.0f', now + length))
if begins then
  checkpoint = redis.call('HGET', LEASE, 'checkpoint') or ''
elseif given == '1' then
  redis.call('HSET', LEASE, 'checkpoint', checkpoint)
end
return { epoch, address, 1, string.format('%.0f', now), begins and checkpoint or '' }
