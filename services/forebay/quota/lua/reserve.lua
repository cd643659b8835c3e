-- Takes every row's amount if all of them have room, and nothing otherwise.
--
-- ARGV[2] lease, ms   [3] request id   [4] router   [5] incarnation   [6] prompt tokens   [7] most completion tokens
--     [8] wait to advise for a hold without room, ms
--     then for each row: name, kind (rate | window | period | hold), value (empty for none), amount,
--         what drains of a rate in a second or the name of a period, when the period ends in ms,
--         from how much on its use is told (empty for never)
-- Returns NEEDS_REBUILD; or {'taken'}; or {'admitted', 0, row number, used, row number, used, ...} with the rows whose use is to be told;
-- or {'refused', ms to wait, row number, used, row number, used, ...} with the rows without room.

local now = present()
if not believed(now) then
  return NEEDS_REBUILD
end
local lease, id, router, incarnation, prompt, max, hold_wait = unpack(ARGV, 2, 8)
local FIRST_ROW, FIELDS = 9, 7

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
    return window_used(row, second_of(now))
  elseif kind == 'rate' then
    return rate_level(row, now, detail)
  elseif kind == 'period' then
    return period_used(row, detail)
  end
  return held(row)
end

-- In how many ms there is room again, or may be.
local function wait_of(kind, row, over, detail, ends_at)
  if kind == 'window' then
    return window_wait(row, now, over)
  elseif kind == 'rate' then
    return math.ceil(over / detail)
  elseif kind == 'period' then
    return math.max(hold_wait, ends_at - now)
  end
  return tonumber(hold_wait)
end

-- Returns the refusal, or the admission with what is to be told.
local function decide()
  local without_room, told, wait = {}, {}, 0
  for at = FIRST_ROW, #ARGV, FIELDS do
    local row, kind, value, amount, detail, ends_at, tell_from = unpack(ARGV, at, at + FIELDS - 1)
    local weight = kind == 'rate' and WEIGHT or 1
    local used = used_of(kind, row, detail)
    local full = value ~= '' and full_for(now, kind, value, detail) or 0
    if full > 0 then
      used = math.max(used, value * weight)
    end
    local number, shown = (at - FIRST_ROW) / FIELDS, math.ceil(used / weight)
    local over = value ~= '' and used + (amount - value) * weight or 0
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
      redis.call('HSET', COUNTERS, row, rate_level(row, now, detail) + amount * WEIGHT, row .. ':at', now)
    elseif kind == 'period' then
      periods[row] = { amount, take_period(row, detail, amount) }
    else
      redis.call('HINCRBY', COUNTERS, row, amount)
      if kind == 'window' then
        redis.call('HINCRBY', COUNTERS, row .. ':' .. second_of(now), amount)
        windows[row] = amount
      else
        holds[row] = amount
      end
    end
  end
  save_reservation(id, {
    router = router, incarnation = incarnation, state = 'held', at = now,
    prompt = tonumber(prompt), max = tonumber(max), windows = windows, periods = periods, holds = holds,
  }, now + lease)
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
keep(now)
return answer
