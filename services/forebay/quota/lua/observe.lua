-- Keeps what the ledger says of live reservations, and corrects days and months of settled ones by it.
--
-- ARGV[2] lease, ms   then for each observation: request id, JSON {position, amounts: {<limit>: amount}, final}
-- Returns how many were news.

if not BEGAN then
  return 0
end
local lease, news = ARGV[2], 0

-- Takes in what the ledger says of a settled request; returns whether that is news. With fewer tokens than the router said it lacks
-- rows, most likely, and is charged when the settlement is forgotten.
local function correct(id, settled, observed)
  local latest = math.max(settled.position, settled.short and settled.short.position or 0)
  if not next(settled.periods) or observed.position <= latest then
    return false
  elseif tokens_of(observed.amounts) >= settled.least then
    charge(id, settled, observed)
  else
    settled.short = observed
    redis.call('HSET', SETTLED, id, cjson.encode(settled))
  end
  return true
end

for at = 3, #ARGV, 2 do
  local id, observed = ARGV[at], cjson.decode(ARGV[at + 1])
  local reservation = load_reservation(id)
  local settled = not reservation and load_settled(id)
  if settled and correct(id, settled, observed) then
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
