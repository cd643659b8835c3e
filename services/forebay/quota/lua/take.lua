-- Takes a window's amount if it has room. No reservation is made: what was taken counts for its minute, whatever comes.
--
-- ARGV[2] row   [3] value   [4] amount
-- Returns 1 or 0 for taken or not, used, ms until there is room, or until some of what counts does so no longer.

local now = present()
local row, value, amount = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local used = window_used(row, second_of(now))
local over = used + amount - value
if over <= 0 then
  redis.call('HINCRBY', COUNTERS, row .. ':' .. second_of(now), amount)
  used = redis.call('HINCRBY', COUNTERS, row, amount)
end
keep(now)
local resets_in = used > 0 and window_wait(row, now, math.max(1, math.min(over, used))) or 0
return { over <= 0 and 1 or 0, used, resets_in }
