-- Extends the leases of a router's reservations; an expired one is revived if what it held still has room.
--
-- ARGV[2] lease, ms   [3] router   [4] incarnation   [5] number of rows
--     then for each row: name, value (empty for none); then the request ids
-- Returns the request ids whose lease is lost.

if not BEGAN then
  return NEEDS_REBUILD
end
local due, router, incarnation, rows = NOW + ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local values = {}
for at = 6, 5 + 2 * rows, 2 do
  values[ARGV[at]] = tonumber(ARGV[at + 1])
end

local function revive(reservation)
  for row, taken in pairs(reservation.holds) do
    if values[row] and taken ~= '0' and held(row) + taken > values[row] then
      return false
    end
  end
  hold(reservation, 1)
  open_periods(reservation, 1)
  reservation.state = 'held'
  return true
end

local lost = {}
for at = 6 + 2 * rows, #ARGV do
  local id = ARGV[at]
  local reservation = load_reservation(id)
  if not reservation or reservation.router ~= router or reservation.incarnation ~= incarnation then
    lost[#lost + 1] = id
  elseif reservation.state == 'held' then
    redis.call('ZADD', DUE, due, id)
  elseif revive(reservation) then
    save_reservation(id, reservation, due)
  else
    lost[#lost + 1] = id
  end
end
keep()
return lost
