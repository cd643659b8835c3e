-- Keeps what the ledger says of live reservations, and corrects days and months of settled ones by it.
--
-- ARGV[2] lease, ms   then for each observation: request id, JSON {position, amounts: {<limit>: amount}, final}
-- Returns how many were news.

if not BEGAN then
  return 0
end
local lease, news = ARGV[2], 0

-- Has days and months be charged with what the ledger says of a settled request.
local function correct(id, settled, observed)
  for row, period in pairs(settled.periods) do
    local limit = limit_of(row)
    correct_period(row, period, (tonumber(observed.amounts[limit]) or 0) - (tonumber(settled.amounts[limit]) or 0))
  end
  settled.amounts, settled.position = observed.amounts, observed.position
  redis.call('HSET', SETTLED, id, cjson.encode(settled))
end

for at = 3, #ARGV, 2 do
  local id, observed = ARGV[at], cjson.decode(ARGV[at + 1])
  local reservation = load_reservation(id)
  local settled = not reservation and load_settled(id)
  if settled and next(settled.periods) and observed.position > settled.position
    and tokens_of(observed.amounts) >= settled.least then
    correct(id, settled, observed)
    news = news + 1
  elseif reservation and (not reservation.observed or observed.position > reservation.observed.position) then
    reservation.observed = observed
    local expired = reservation.state == 'expired'
    save_reservation(id, reservation, expired and NOW + patience(observed, lease) or redis.call('ZSCORE', DUE, id))
    news = news + 1
  end
end
if news > 0 then
  keep()
end
return news
