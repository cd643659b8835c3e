-- Shows how much of each row is used; changes nothing.
--
-- ARGV from 2, for each row: name, kind (rate | window | period | hold), value, what drains of a rate in a second or the name
--     of a period, when the period ends in ms
-- Returns for each row: used, ms until some of it is free again (0 where that is not known).

if not believed() then
  return NEEDS_REBUILD
end
local answer = {}
for at = 2, #ARGV, 5 do
  local row, kind, value, detail, ends_at = unpack(ARGV, at, at + 4)
  local used, resets_in = 0, 0
  if kind == 'window' then
    for _, amount in ipairs(window_buckets(row)) do
      used = used + amount
    end
    resets_in = used > 0 and window_wait(row, 1) or 0
  elseif kind == 'rate' then
    local level = rate_level(row, detail)
    used = math.ceil(level / WEIGHT)
    resets_in = used > 0 and math.ceil((level - WEIGHT * (used - 1)) / detail) or 0
  elseif kind == 'period' then
    used = period_used(row, detail) or 0
    resets_in = used > 0 and math.max(0, ends_at - CLOCK) or 0
  else
    used = held(row)
  end
  local full = value ~= '' and full_for(kind, value, detail) or 0
  if full > 0 then
    used, resets_in = math.max(used, value), full
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = resets_in
end
return answer
