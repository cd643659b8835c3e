-- Gives a lease up, unless its term is over; the specification is forebay.scheduler.domain.lease.Tenure.
--
-- KEYS[1] as in bid.lua
-- ARGV[1] epoch of the term

if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'until', '0')
end
