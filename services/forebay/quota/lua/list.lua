-- Lists live reservations in order of their request id; changes nothing.
--
-- ARGV[2] list those after this request id   [3] at most this many
-- Returns for each: request id, its JSON, when it is due in ms.

local after, most = ARGV[2], tonumber(ARGV[3])
local ids = redis.call('HKEYS', RESERVATIONS)
table.sort(ids)
local answer = {}
for _, id in ipairs(ids) do
  if #answer == 3 * most then
    break
  elseif id > after then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('HGET', RESERVATIONS, id)
    answer[#answer + 1] = redis.call('ZSCORE', DUE, id)
  end
end
return answer
