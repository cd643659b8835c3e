-- Shows what is used of days and months without what reservations hold; changes nothing.
--
-- ARGV from 2, for each row: name, period
-- Returns nothing unless the tenant is ready; else what the clock reads in ms, for each row what is used (empty where nothing is
-- remembered of the period), and then the requests that hold.

if not READY then
  return {}
end
local ids, live = ids_of(RESERVATIONS), {}
for i, id in ipairs(ids) do
  live[i] = load_reservation(id)
end
local answer = { string.format('%.0f', CLOCK) }
for at = 2, #ARGV, 2 do
  local row, period = ARGV[at], ARGV[at + 1]
  local used = period_used(row, period)
  if used then
    for _, reservation in ipairs(live) do
      local taken = reservation.periods[row]
      used = used - (taken and taken[2] == period and taken[1] or 0)
    end
    answer[#answer + 1] = string.format('%.0f', used)
  else
    answer[#answer + 1] = ''
  end
end
for _, id in ipairs(ids) do
  answer[#answer + 1] = id
end
return answer
