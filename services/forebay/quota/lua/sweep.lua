-- Moves on what is due, oldest first: held to expired, expired to settled by what was observed, settled to forgotten.
--
-- ARGV[2] lease, ms   [3] how long a charge stays provisional, ms   [4] how long a settlement is remembered, ms
--     [5] most to move
-- Returns how many expired, were settled, were forgotten.

local now = present()
if not believed(now) then
  return NEEDS_REBUILD
end
local lease, provisional, remembered, most = unpack(ARGV, 2, 5)
local expired, settled, forgotten = 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, most)) do
  local reservation = load_reservation(id)
  if not reservation then
    redis.call('HDEL', SETTLED, id)
    redis.call('ZREM', DUE, id)
    forgotten = forgotten + 1
  elseif reservation.state == 'held' then
    give_back(reservation)
    reservation.state = 'expired'
    save_reservation(id, reservation, now + patience(reservation.observed, lease, provisional))
    expired = expired + 1
  else
    local observed = reservation.observed
    finish(id, reservation, observed and observed.amounts or {}, 0, now, remembered)
    settled = settled + 1
  end
end
if expired + settled + forgotten > 0 then
  keep(now)
end
return { expired, settled, forgotten }
