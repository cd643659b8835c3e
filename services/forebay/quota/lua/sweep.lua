-- Moves on what is due, oldest first: held to expired, expired to settled as it was charged, settled to forgotten.
--
-- ARGV[2] how long a charge stays provisional, ms   [3] how long a settlement is remembered, ms   [4] most to move
-- Returns how many expired, were settled, were forgotten.

local now = present()
local provisional, remembered, most = ARGV[2], ARGV[3], ARGV[4]
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
    save_reservation(id, reservation, now + provisional)
    expired = expired + 1
  else
    finish(id, reservation, now + remembered)
    settled = settled + 1
  end
end
if expired + settled + forgotten > 0 then
  keep(now)
end
return { expired, settled, forgotten }
