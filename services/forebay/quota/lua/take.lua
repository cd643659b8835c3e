-- Takes a window's amount if it has room. No reservation is made: what was taken counts for its minute, whatever comes.
--
-- ARGV[2] row   [3] value   [4] amount
-- Returns 1 or 0 for taken or not, used, ms until there is room, or until some of what counts does so no longer.

local now = present()
if not believed(now) then
  return NEEDS_REBUILD
end
local row, value, amount = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local full = full_for(now, 'window')
local used = math.max(window_used(row, second_of(now)), full > 0 and value or 0)
local over = used + amount - value
if over <= 0 then
  redis.call('HINCRBY', COUNTERS, row .. ':' .. second_of(now), amount)
  used = math.max(redis.call('HINCRBY', COUNTERS, row, amount), full > 0 and value or 0)
end
keep(now)
local resets_in = 0
if used > 0 then
  resets_in = full > 0 and full or window_wait(row, now, math.max(1, math.min(over, used)))
end
return { over <= 0 and 1 or 0, used, resets_in }
