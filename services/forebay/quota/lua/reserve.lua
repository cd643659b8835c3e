-- Takes every row's amount if all of them have room, and nothing otherwise.
--
-- ARGV[2] lease, ms   [3] request id   [4] router   [5] incarnation   [6] prompt tokens   [7] most completion tokens
--     [8] how long requests are taken to last while none has ended, ms   [9] the least to wait for the end of a period, ms
--     then for each row: name, kind (rate | window | period | hold), value (empty for none), amount,
--         what drains of a rate in a second or the name of a period, when the period ends in ms,
--         from how much on its use is told (empty for never)
-- Returns NEEDS_REBUILD; or {'taken'}; or {'admitted', 0, row number, used, row number, used, ...} with the rows whose use is to be told;
-- or {'refused', ms to wait, row number, used, row number, used, ...} with the rows without room.

if not believed() then
  return NEEDS_REBUILD
end
local lease, id, router, incarnation, prompt, max, unknown, least_wait = unpack(ARGV, 2, 9)
local FIRST_ROW, FIELDS = 10, 7

local function owner()
  local reservation = load_reservation(id)
  if reservation then
    return reservation.router .. '/' .. reservation.incarnation
  end
  local settled = load_settled(id)
  return settled and settled.owner
end

-- What is used of a row; of a rate in thousandths.
local function used_of(kind, row, detail)
  if kind == 'window' then
    return window_used(row)
  elseif kind == 'rate' then
    return rate_level(row, detail)
  elseif kind == 'period' then
    return period_used(row, detail) or 0
  end
  return held(row)
end

-- How much of what is used running requests hold.
local function open_of(kind, row, period)
  if kind == 'period' then
    local field = period_field(row, period)
    return field and tonumber(redis.call('HGET', COUNTERS, field .. ':open')) or 0
  end
  local sum = 0
  for _, amount in ipairs(window_buckets(row, ':open')) do
    sum = sum + amount
  end
  return sum
end

-- In how many ms there is room again, or may be: where settlements can make it, no later than one is to be expected.
local function wait_of(kind, row, over, detail, ends_at)
  local settled_in = median(unknown)
  if kind == 'rate' then
    return math.ceil(over / detail)
  elseif kind == 'hold' then
    return settled_in
  end
  local own = kind == 'window' and window_wait(row, over) or math.max(least_wait, ends_at - CLOCK)
  return over <= open_of(kind, row, detail) and math.min(own, settled_in) or own
end

-- Returns the refusal, or the admission with what is to be told.
local function decide()
  local without_room, told, wait = {}, {}, 0
  for at = FIRST_ROW, #ARGV, FIELDS do
    local row, kind, value, amount, detail, ends_at, tell_from = unpack(ARGV, at, at + FIELDS - 1)
    local weight = kind == 'rate' and WEIGHT or 1
    local used = used_of(kind, row, detail)
    local full = value ~= '' and full_for(kind, value, detail) or 0
    if full > 0 then
      used = math.max(used, value * weight)
    end
    local number, shown = (at - FIRST_ROW) / FIELDS, math.ceil(used / weight)
    local over = value ~= '' and amount ~= '0' and used + (amount - value) * weight or 0
    if over > 0 then
      without_room[#without_room + 1] = number
      without_room[#without_room + 1] = shown
      wait = math.max(wait, full > 0 and full or wait_of(kind, row, over, detail, ends_at))
    elseif tell_from ~= '' and shown + amount >= tonumber(tell_from) then
      told[#told + 1] = number
      told[#told + 1] = shown
    end
  end
  if #without_room > 0 then
    return { 'refused', wait, unpack(without_room) }
  end
  return { 'admitted', 0, unpack(told) }
end

local function take()
  local windows, periods, holds = {}, {}, {}
  for at = FIRST_ROW, #ARGV, FIELDS do
    local row, kind, _, amount, detail = unpack(ARGV, at, at + FIELDS - 1)
    if kind == 'rate' then
      redis.call('HSET', COUNTERS, row, rate_level(row, detail) + amount * WEIGHT, row .. ':at', NOW)
    elseif kind == 'period' then
      take_period(row, detail, amount)
      if amount ~= '0' then
        redis.call('HINCRBY', COUNTERS, row .. ':open', amount) -- the latest period is the row's own
      end
      periods[row] = { amount, detail }
    elseif kind == 'hold' then
      redis.call('HINCRBY', COUNTERS, row, amount)
      holds[row] = amount
    else
      windows[row] = amount
      if amount ~= '0' then
        redis.call('HINCRBY', COUNTERS, row, amount)
        redis.call('HINCRBY', COUNTERS, row .. ':' .. second_of(NOW), amount)
      end
    end
  end
  local reservation = {
    router = router, incarnation = incarnation, state = 'held', at = NOW,
    prompt = tonumber(prompt), max = tonumber(max), windows = windows, periods = periods, holds = holds,
  }
  save_reservation(id, reservation, NOW + lease)
  open_windows(reservation, 1)
end

local known = owner()
local answer
if known then
  answer = { known == router .. '/' .. incarnation and 'admitted' or 'taken' }
else
  answer = decide()
  if answer[1] == 'admitted' then
    take()
  end
end
keep()
return answer
