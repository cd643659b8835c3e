-- Puts an absent tenant's counters there, and clears away what else may be left of it.
--
-- ARGV[2] lease, ms   [3] 1 if the tenant was lost, 0 if it is new
-- Returns 1, or 0 if they are there. A tenant of which anything is left is no new one, whatever the caller knows.

if BEGAN then
  return 0
end
local lost = ARGV[3] == '1' or redis.call('EXISTS', unpack(KEYS)) > 0
redis.call('DEL', unpack(KEYS))
redis.call('HSET', COUNTERS, 'began', NOW, 'gathers', NOW + ARGV[2], lost and 'lost' or 'ready', 1)
mark()
keep()
return 1
