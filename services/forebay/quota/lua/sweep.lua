-- Moves on what is due, oldest first: held to expired, expired to settled by what was observed, settled to forgotten.
--
-- ARGV[2] lease, ms   [3] how long a charge stays provisional, ms   [4] how long a settlement is remembered, ms
--     [5] most to move   [6] what the clock reads at most unless it has stepped forward, ms, empty for no such bound
-- Returns how many expired, were settled, were forgotten: nothing after a step forward.

if not believed() then
  return NEEDS_REBUILD
end
local lease, provisional, remembered, most, not_after = unpack(ARGV, 2, 6)
if not_after ~= '' and CLOCK > tonumber(not_after) then
  return { 0, 0, 0 }
end
local expired, settled, forgotten = 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', NOW, 'LIMIT', 0, most)) do
  local reservation = load_reservation(id)
  if not reservation then
    local remembered_one = load_settled(id)
    if remembered_one and remembered_one.short then
      charge(id, remembered_one, remembered_one.short)
    end
    redis.call('HDEL', SETTLED, id)
    redis.call('ZREM', DUE, id)
    forgotten = forgotten + 1
  elseif reservation.state == 'held' then
    hold(reservation, -1)
    open_periods(reservation, -1)
    reservation.state = 'expired'
    save_reservation(id, reservation, NOW + patience(reservation.observed, lease, provisional))
    expired = expired + 1
  else
    local observed = reservation.observed
    finish(id, reservation, observed and observed.amounts or {}, 0, remembered)
    settled = settled + 1
  end
end
if expired + settled + forgotten > 0 then
  keep()
end
return { expired, settled, forgotten }
