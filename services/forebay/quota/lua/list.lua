-- Lists live reservations in order of their request id; changes nothing.
--
-- ARGV[2] list those after this request id   [3] at most this many
-- Returns for each: request id, its JSON, when it was reserved and when it is due in ms, by the clock.

local after, most = ARGV[2], tonumber(ARGV[3])
local answer = {}
if not BEGAN then
  return answer
end

local function by_the_clock(time)
  return string.format('%.0f', time - NOW + CLOCK)
end

for _, id in ipairs(ids_of(RESERVATIONS)) do
  if #answer == 4 * most then
    break
  elseif id > after then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('HGET', RESERVATIONS, id)
    answer[#answer + 1] = by_the_clock(load_reservation(id).at)
    answer[#answer + 1] = by_the_clock(redis.call('ZSCORE', DUE, id))
  end
end
return answer
