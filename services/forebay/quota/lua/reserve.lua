-- Takes every row's amount if all of them have room, and nothing otherwise.
--
-- ARGV[2] lease, ms   [3] request id   [4] router   [5] incarnation   [6] prompt tokens   [7] most completion tokens
--     [8] wait to advise for a hold without room, ms
--     then for each row: name, kind (window | hold), value (empty for none), amount
-- Returns {outcome}, outcome being admitted or taken; or {'refused', ms to wait, row number, used, row number, used, ...}.

local now = present()
local lease, id, router, incarnation, prompt, max, hold_wait = unpack(ARGV, 2, 8)
local FIRST_ROW = 9

local function owner()
  local reservation = load_reservation(id)
  if reservation then
    return reservation.router .. '/' .. reservation.incarnation
  end
  return redis.call('HGET', SETTLED, id)
end

local function refusal()
  local full, wait = {}, 0
  for at = FIRST_ROW, #ARGV, 4 do
    local row, kind, value, amount = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local used = kind == 'window' and window_used(row, second_of(now)) or held(row)
    if value and used + amount > value then
      full[#full + 1] = (at - FIRST_ROW) / 4
      full[#full + 1] = used
      wait = math.max(wait, kind == 'window' and window_wait(row, now, used + amount - value) or tonumber(hold_wait))
    end
  end
  return #full > 0 and { 'refused', wait, unpack(full) }
end

local function take()
  local windows, holds = {}, {}
  for at = FIRST_ROW, #ARGV, 4 do
    local row, kind, amount = ARGV[at], ARGV[at + 1], ARGV[at + 3]
    redis.call('HINCRBY', COUNTERS, row, amount)
    if kind == 'window' then
      redis.call('HINCRBY', COUNTERS, row .. ':' .. second_of(now), amount)
      windows[row] = tonumber(amount)
    else
      holds[row] = tonumber(amount)
    end
  end
  save_reservation(id, {
    router = router, incarnation = incarnation, state = 'held', at = now,
    prompt = tonumber(prompt), max = tonumber(max), windows = windows, holds = holds,
  }, now + lease)
  return { 'admitted' }
end

local known = owner()
local answer
if known then
  answer = { known == router .. '/' .. incarnation and 'admitted' or 'taken' }
else
  answer = refusal() or take()
end
keep(now)
return answer
