-- Takes in what a router holds of a lost tenant, whether there is room or not.
--
-- ARGV[2] lease, ms   [3] request id   [4] router   [5] incarnation   [6] prompt tokens   [7] most completion tokens
--     [8] when it was reserved, ms   then for each row: name, period (empty for a hold), amount
-- Returns 1 if it is held now, else 0; or NEEDS_REBUILD.

if not BEGAN then
  return NEEDS_REBUILD
end
local lease, id, router, incarnation, prompt, max, reserved_at = unpack(ARGV, 2, 8)

local known = load_reservation(id)
if known then
  return known.state == 'held' and known.router == router and known.incarnation == incarnation and 1 or 0
elseif NOW >= tonumber(GATHERS) or redis.call('HEXISTS', SETTLED, id) == 1 then
  return 0
end

local periods, holds = {}, {}
for at = 9, #ARGV, 3 do
  local row, period, amount = unpack(ARGV, at, at + 2)
  if period == '' then
    redis.call('HINCRBY', COUNTERS, row, amount)
    holds[row] = amount
  else
    take_period(row, period, amount)
    periods[row] = { amount, period }
  end
end
local reservation = {
  router = router, incarnation = incarnation, state = 'held', at = NOW + math.min(reserved_at, CLOCK) - CLOCK,
  prompt = tonumber(prompt), max = tonumber(max), windows = {}, periods = periods, holds = holds,
}
save_reservation(id, reservation, NOW + lease)
open_periods(reservation, 1)
keep()
return 1
