-- Puts an absent tenant's counters there, and clears away what else may be left of it.
--
-- ARGV[2] lease, ms   [3] 1 if the tenant was lost, 0 if it is new
-- Returns 1, or 0 if they are there.

if BEGAN then
  return 0
end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', COUNTERS, 'began', NOW, 'gathers', NOW + ARGV[2], ARGV[3] == '1' and 'lost' or 'ready', 1)
mark()
keep()
return 1
