-- Shows how much of each row is used; changes nothing.
--
-- ARGV from 2, for each row: name, kind (window | hold)
-- Returns for each row: used, ms until some of it is free again (0 where that is not known).

local now = present()
local answer = {}
for at = 2, #ARGV, 2 do
  local row, used, resets_in = ARGV[at], 0, 0
  if ARGV[at + 1] == 'window' then
    for _, amount in ipairs(window_buckets(row, second_of(now))) do
      used = used + amount
    end
    resets_in = used > 0 and window_wait(row, now, 1) or 0
  else
    used = held(row)
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = resets_in
end
return answer
