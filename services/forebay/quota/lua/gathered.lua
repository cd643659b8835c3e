-- Tells of a tenant whose gathering has ended; changes nothing.
--
-- Returns when its counters began, ms, and every request in the books since; nothing if there is nothing to be completed.

if not BEGAN or READY or NOW < tonumber(GATHERS) then
  return {}
end
local answer = ids_of(RESERVATIONS)
for _, id in ipairs(ids_of(SETTLED)) do
  answer[#answer + 1] = id
end
table.sort(answer)
table.insert(answer, 1, BEGAN)
return answer
