-- The state of one tenant, and what every script here does with it. Goes in front of each of them.
-- The specification, operation by operation, is forebay.quota.domain.counters; of one row, forebay.quota.domain.meters.
--
-- KEYS, all with the tag {tenant}:
--   KEYS[1] counters      hash  now                latest time seen, ms; it never goes back
--                               began              ms: since when these counters are there; without it the tenant is absent
--                               gathers            ms: until when routers bring what they hold
--                               lost               1 if there was something before, so that every limit begins full
--                               ready              1 once the ledger's sums are in
--                               <row>              integer: what counts now of a window or a period, is held of a hold,
--                                                  or has not drained of a rate, in thousandths of a request
--                               <row>:at           ms: when that of a rate was so
--                               <row>:period       the day or month of a period's integer, such as 2026-11-22; never goes back
--                               <row>:from         second: the oldest one that is still part of a window's integer
--                               <row>:<second>     integer: taken of a window in that second
--   KEYS[2] reservations  hash  <request id>       JSON {router, incarnation, state: held | expired, at: ms, prompt, max,
--                                                  windows: {<row>: amount}, holds: {<row>: amount},
--                                                  periods: {<row>: {amount, period}},
--                                                  observed: {position, amounts: {<limit>: amount}, final}}
--   KEYS[3] settled       hash  <request id>       JSON {owner: "<router>/<incarnation>", position, least, periods: {<row>: period},
--                                                  amounts: {<limit>: amount}}, remembered for repeats and for corrections
--   KEYS[4] due           zset  <request id> by ms at which its state ends by itself
--
-- A row is "<subject>/<limit>", such as tenant:acme/tokens_per_minute.
-- ARGV[1] is the present in ms since the epoch, 0 for this server's own time.
--
-- Sums move by HINCRBY, and amounts in JSON and incarnations stay strings: a Lua number that is printed loses its digits above
-- 1e14. What is compared is below 2^53, up to where doubles are exact: no limit is larger. Nor is a number negated by a minus
-- alone: -0 prints as "-0", which HINCRBY refuses.

local COUNTERS, RESERVATIONS, SETTLED, DUE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WINDOW_S = 60
local WEIGHT = 1000 -- of one request in a rate
-- Longer than a month, then a tenant that is gone leaves nothing behind. All keys end together: what is held is in the
-- counters, and who holds it in the reservations, and after a night without quota the sweep must find both.
local KEEP_S = 32 * 86400

-- The answer of a script that cannot say anything before the tenant's counters are rebuilt.
local NEEDS_REBUILD = 'NEEDS_REBUILD'

local LATEST, BEGAN, GATHERS, LOST, READY =
  unpack(redis.call('HMGET', COUNTERS, 'now', 'began', 'gathers', 'lost', 'ready'))

local function present()
  local now = tonumber(ARGV[1])
  if now == 0 then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return math.max(now, tonumber(LATEST) or 0)
end

-- Whether the counters can be believed: they are there, and what was lost is in them or still being gathered.
local function believed(now)
  return BEGAN and (READY or now < tonumber(GATHERS))
end

-- Called last by every script that changes something.
local function keep(now)
  redis.call('HSET', COUNTERS, 'now', now)
  for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, KEEP_S)
  end
end

local function second_of(ms)
  return math.floor(ms / 1000)
end

-- For how many ms from now a row with a value counts as used up because of a loss; 0 or less if it does not.
local function full_for(now, kind, value, detail)
  if not LOST then
    return 0
  elseif kind == 'rate' then
    return BEGAN + math.ceil(value * WEIGHT / detail) - now
  elseif kind == 'window' then
    return (second_of(BEGAN) + WINDOW_S + 1) * 1000 - now
  end
  return READY and 0 or GATHERS - now
end

-- What counts of a window, without the seconds that have left it since the last call: each is dropped once.
local function window_used(row, second)
  local oldest = second - WINDOW_S
  local used, from = unpack(redis.call('HMGET', COUNTERS, row, row .. ':from'))
  used, from = tonumber(used) or 0, tonumber(from)
  if from == oldest then
    return used
  end
  local gone = 0
  for old = from or oldest, math.min(oldest - 1, (from or oldest) + WINDOW_S) do
    local bucket = row .. ':' .. old
    gone = gone + (tonumber(redis.call('HGET', COUNTERS, bucket)) or 0)
    redis.call('HDEL', COUNTERS, bucket)
  end
  redis.call('HSET', COUNTERS, row .. ':from', oldest)
  return redis.call('HINCRBY', COUNTERS, row, 0 - gone)
end

-- The amounts of a window's 61 seconds, oldest first.
local function window_buckets(row, second)
  local fields = {}
  for old = second - WINDOW_S, second do
    fields[#fields + 1] = row .. ':' .. old
  end
  local amounts = redis.call('HMGET', COUNTERS, unpack(fields))
  for i = 1, #fields do
    amounts[i] = tonumber(amounts[i]) or 0
  end
  return amounts
end

-- In how many ms `amount` of what counts of a window counts no longer.
local function window_wait(row, now, amount)
  local second, freed = second_of(now), 0
  for i, taken in ipairs(window_buckets(row, second)) do
    freed = freed + taken
    if freed >= amount then
      return (second + i) * 1000 - now
    end
  end
  return 0
end

-- What has not drained of a rate, `per_second` requests of it in a second.
local function rate_level(row, now, per_second)
  local level, at = unpack(redis.call('HMGET', COUNTERS, row, row .. ':at'))
  return math.max(0, (tonumber(level) or 0) - per_second * (now - (tonumber(at) or now)))
end

local function period_used(row, period)
  local used, present_one = unpack(redis.call('HMGET', COUNTERS, row, row .. ':period'))
  return present_one and period <= present_one and tonumber(used) or 0
end

-- Takes in a period, or in the latest one that anybody named; returns which.
local function take_period(row, period, amount)
  local present_one = redis.call('HGET', COUNTERS, row .. ':period')
  if not present_one or present_one < period then
    redis.call('HSET', COUNTERS, row, 0, row .. ':period', period)
    present_one = period
  end
  redis.call('HINCRBY', COUNTERS, row, amount)
  return present_one
end

-- Adds to a period, or does nothing if it is over; returns whether it was added.
local function add_to_period(row, period, amount)
  local present_one = redis.call('HGET', COUNTERS, row .. ':period')
  if present_one and period < present_one then
    return false
  end
  take_period(row, period, amount)
  return true
end

local function held(row)
  return tonumber(redis.call('HGET', COUNTERS, row)) or 0
end

local function load_reservation(id)
  local text = redis.call('HGET', RESERVATIONS, id)
  return text and cjson.decode(text)
end

local function save_reservation(id, reservation, due)
  redis.call('HSET', RESERVATIONS, id, cjson.encode(reservation))
  redis.call('ZADD', DUE, due, id)
end

local function give_back(reservation)
  for row, amount in pairs(reservation.holds) do
    redis.call('HINCRBY', COUNTERS, row, 0 - amount)
  end
end

-- How long an expired reservation waits for news after it was observed so.
local function patience(observed, lease, provisional)
  if not observed then
    return provisional
  end
  return observed.final and 0 or lease
end

local function limit_of(row)
  return row:match('[^/]*$')
end

local function tokens_of(amounts)
  return tonumber(amounts.tokens_per_day) or 0
end

-- Nothing unless it is settled and remembered. An earlier release wrote the owner alone.
local function load_settled(id)
  local text = redis.call('HGET', SETTLED, id)
  if text and text:sub(1, 1) ~= '{' then
    return { owner = text, position = 0, least = 0, periods = {}, amounts = {} }
  end
  return text and cjson.decode(text)
end

-- Changes what was taken in a period, if it is still the present one.
local function correct_period(row, period, difference)
  if redis.call('HGET', COUNTERS, row .. ':period') == period then
    redis.call('HINCRBY', COUNTERS, row, difference)
  end
end

-- Replaces what a reservation took by what was used, by limit; a limit that is not named was not used.
-- Of days and months the ledger knows better, if it has at least so many tokens: with fewer, some of its rows are still to come.
local function finish(id, reservation, amounts, least, now, remembered)
  local observed = reservation.observed
  local known = observed and tokens_of(observed.amounts) >= least
  local charged = known and observed.amounts or amounts
  local function difference(row, taken)
    return (tonumber(amounts[limit_of(row)]) or 0) - taken
  end
  local admitted_in = second_of(reservation.at)
  if admitted_in >= second_of(now) - WINDOW_S then
    for row, taken in pairs(reservation.windows) do
      redis.call('HINCRBY', COUNTERS, row, difference(row, taken))
      redis.call('HINCRBY', COUNTERS, row .. ':' .. admitted_in, difference(row, taken))
    end
  end
  local settled = {
    owner = reservation.router .. '/' .. reservation.incarnation, position = known and observed.position or 0, least = least,
    periods = {}, amounts = {},
  }
  for row, taken in pairs(reservation.periods) do
    local limit = limit_of(row)
    correct_period(row, taken[2], (tonumber(charged[limit]) or 0) - taken[1])
    settled.periods[row], settled.amounts[limit] = taken[2], charged[limit]
  end
  if reservation.state == 'held' then
    give_back(reservation)
  end
  redis.call('HDEL', RESERVATIONS, id)
  redis.call('HSET', SETTLED, id, cjson.encode(settled))
  redis.call('ZADD', DUE, now + remembered, id)
end
