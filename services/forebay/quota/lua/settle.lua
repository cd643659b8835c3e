-- Replaces what a reservation took by what was used; only the first settlement finds it.
--
-- ARGV[2] request id   [3] how long it is remembered, ms   then for each limit: name, amount used
-- Returns 1 if this settlement counts, else 0.

if not BEGAN then
  return NEEDS_REBUILD
end
local id, remembered = ARGV[2], ARGV[3]
local amounts = {}
for at = 4, #ARGV, 2 do
  amounts[ARGV[at]] = ARGV[at + 1]
end

local reservation = load_reservation(id)
if reservation then
  if reservation.state == 'held' then
    took(NOW - reservation.at)
  end
  finish(id, reservation, amounts, tokens_of(amounts), remembered)
end
keep()
return reservation and 1 or 0
