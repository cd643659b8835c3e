-- Keeps what the ledger says of live reservations, with each of them the last attempt's last row.
--
-- ARGV[2] lease, ms   then for each observation: request id, JSON {attempt, position, amounts: {<limit>: amount}, final}
-- Returns how many were news.

if not BEGAN then
  return 0
end
local lease, news = ARGV[2], 0

local function is_news(observed, known)
  if not known or observed.attempt ~= known.attempt then
    return not known or observed.attempt > known.attempt
  end
  return observed.position > known.position
end

for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  local reservation = load_reservation(id)
  local observed = reservation and cjson.decode(ARGV[at + 1])
  if reservation and is_news(observed, reservation.observed) then
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
