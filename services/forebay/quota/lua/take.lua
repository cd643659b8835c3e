-- Takes the amounts of rates and windows if all of them have room, and nothing otherwise. No reservation is made: what was taken
-- counts for its time, whatever comes.
--
-- ARGV from 2, for each row: name, kind (rate | window), value, amount, what drains of a rate in a second
-- Returns NEEDS_REBUILD; or for each row: 1 or 0 for room or none, used, ms until there is room, or until some of what counts does so no longer.

if not believed() then
  return NEEDS_REBUILD
end
local FIELDS = 5

-- What counts of a row; of a rate in thousandths.
local function level_of(row)
  if row.kind == 'rate' then
    return rate_level(row.name, row.drain)
  end
  return window_used(row.name)
end

-- The same, where a row counts as used up because of a loss.
local function shown_of(row)
  return row.full > 0 and math.max(level_of(row), row.value * row.weight) or level_of(row)
end

local function take(row)
  if row.kind == 'rate' then
    redis.call('HSET', COUNTERS, row.name, level_of(row) + row.amount * WEIGHT, row.name .. ':at', NOW)
  else
    redis.call('HINCRBY', COUNTERS, row.name .. ':' .. second_of(NOW), row.amount)
    redis.call('HINCRBY', COUNTERS, row.name, row.amount)
  end
end

-- In how many ms what is over is free, or all that counts when that is less; where there is room, in how many the next one is.
local function freed_in(row, level, used)
  if row.full > 0 then
    return row.full
  elseif used == 0 then
    return 0
  elseif row.kind == 'rate' then
    return math.ceil((row.over > 0 and math.min(row.over, level) or level - WEIGHT * (used - 1)) / row.drain)
  end
  return window_wait(row.name, math.max(1, math.min(row.over, used)))
end

local rows, room = {}, true
for at = 2, #ARGV, FIELDS do
  local name, kind, value, amount, drain = unpack(ARGV, at, at + FIELDS - 1)
  local row = { name = name, kind = kind, value = tonumber(value), amount = tonumber(amount), drain = tonumber(drain) }
  row.weight = kind == 'rate' and WEIGHT or 1
  row.full = full_for(kind, row.value, row.drain)
  row.over = row.amount > 0 and shown_of(row) + (row.amount - row.value) * row.weight or 0
  room = room and row.over <= 0
  rows[#rows + 1] = row
end
local answer = {}
for _, row in ipairs(rows) do
  if room then
    take(row)
  end
  local level = shown_of(row)
  local used = math.ceil(level / row.weight)
  answer[#answer + 1] = row.over <= 0 and 1 or 0
  answer[#answer + 1] = used
  answer[#answer + 1] = freed_in(row, level, used)
end
keep()
return answer
