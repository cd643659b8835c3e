-- Replaces what a reservation took by what was used; only the first settlement finds it.
--
-- ARGV[2] request id   [3] how long it is remembered, ms   then for each limit: name, amount used
-- Returns 1 if this settlement counts, else 0.

local now = present()
local id, remembered = ARGV[2], ARGV[3]
local used = {}
for at = 4, #ARGV, 2 do
  used[ARGV[at]] = tonumber(ARGV[at + 1])
end

local reservation = load_reservation(id)
if reservation then
  local admitted_in = second_of(reservation.at)
  if admitted_in >= second_of(now) - WINDOW_S then
    for row, taken in pairs(reservation.windows) do
      local difference = (used[row:match('[^/]*$')] or taken) - taken
      redis.call('HINCRBY', COUNTERS, row, difference)
      redis.call('HINCRBY', COUNTERS, row .. ':' .. admitted_in, difference)
    end
  end
  finish(id, reservation, now + remembered)
end
keep(now)
return reservation and 1 or 0
