-- The state of one tenant, and what every script here does with it. Goes in front of each of them.
-- The specification, operation by operation, is forebay.quota.domain.counters; of one row, forebay.quota.domain.meters.
--
-- KEYS, all with the tag {tenant}; a server that evicts keys may lose any of them alone, and then the tenant counts as absent:
--   KEYS[1] counters      hash  now, clock         the tenant's timeline in ms, and what the server's clock read then
--                               began              ms: since when these counters are there; without it the tenant is absent
--                               gathers            ms: until when routers bring what they hold
--                               lost               1 if there was something before, so that every limit begins full
--                               ready              1 once the ledger's sums are in
--                               marked             1 once the marks of the next two keys are there
--                               took               ms that the latest settled requests took, the last one first: 300,280
--                               <row>              integer: what counts now of a window or a period, is held of a hold,
--                                                  or has not drained of a rate, in thousandths of a request
--                               <row>:at           ms: when that of a rate was so
--                               <row>:from         second: the oldest one that is still part of a window's integer
--                               <row>:<second>     integer: taken of a window in that second
--                               <row>:<second>:open    integer: how much of it running requests hold
--                               <row>:period       the day or month of a period's integer, such as 2026-11-22: the last named
--                               <row>:open         integer: how much of a period's integer running requests hold
--                               <row>:others       up to three days or months that were named before, the last of them last
--                               <row>:<period>, <row>:<period>:open    integers: the same of each of them
--   KEYS[2] reservations  hash  ""                 "", so that the key is always there
--                               <request id>       JSON {router, incarnation, state: held | expired, at: ms, prompt, max,
--                                                  windows: {<row>: amount}, holds: {<row>: amount},
--                                                  periods: {<row>: {amount, period}},
--                                                  observed: {position, amounts: {<limit>: amount}, final}}
--   KEYS[3] settled       hash  ""                 "", likewise
--                               <request id>       JSON {owner: "<router>/<incarnation>", position, least, periods: {<row>: period},
--                                                  amounts: {<limit>: amount}, short: {position, amounts}},
--                                                  remembered for repeats and for corrections
--   KEYS[4] due           zset  <request id> by ms at which its state ends by itself; the key is there if there is any request
--
-- A row is "<subject>/<limit>", such as tenant:acme/tokens_per_minute.
-- ARGV[1] is what the clock reads, in ms since the epoch, 0 for this server's own. All times are on the tenant's timeline
-- (forebay.quota.domain.timeline), on which a clock that steps neither stops nor turns back; but where periods end is told by the clock.
--
-- Sums move by HINCRBY, and amounts in JSON and incarnations stay strings: a Lua number that is printed loses its digits above
-- 1e14. What is compared is below 2^53, up to where doubles are exact: no limit is larger. Nor is a number negated by a minus
-- alone: -0 prints as "-0", which HINCRBY refuses, and 0 + -0 is 0.

local COUNTERS, RESERVATIONS, SETTLED, DUE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WINDOW_S = 60
local WEIGHT = 1000 -- of one request in a rate
-- Longer than a month, then a tenant that is gone leaves nothing behind. All keys end together: what is held is in the
-- counters, and who holds it in the reservations, and after a night without quota the sweep must find both.
local KEEP_S = 32 * 86400

-- The answer of a script that cannot say anything before the tenant's counters are rebuilt.
local NEEDS_REBUILD = 'NEEDS_REBUILD'

local LATEST, READ, BEGAN, GATHERS, LOST, READY, MARKED, TOOK =
  unpack(redis.call('HMGET', COUNTERS, 'now', 'clock', 'began', 'gathers', 'lost', 'ready', 'marked', 'took'))

local function mark()
  redis.call('HSET', RESERVATIONS, '', '')
  redis.call('HSET', SETTLED, '', '')
  redis.call('HSET', COUNTERS, 'marked', 1)
end

-- How many requests are in the books.
local function in_books()
  return redis.call('HLEN', RESERVATIONS) + redis.call('HLEN', SETTLED) - 2
end

-- Whether a key that belongs to these counters is gone.
local function damaged()
  if redis.call('EXISTS', RESERVATIONS, SETTLED, DUE) == 3 then
    return false
  end
  local reservations, settled = redis.call('HLEN', RESERVATIONS), redis.call('HLEN', SETTLED)
  return reservations == 0 or settled == 0 or (reservations + settled > 2 and redis.call('EXISTS', DUE) == 0)
end

if BEGAN and not MARKED then
  mark() -- these counters are older than the marks
elseif BEGAN and damaged() then
  BEGAN, READY = false, false
end

local CLOCK = tonumber(ARGV[1])
if CLOCK == 0 then
  local time = redis.call('TIME')
  CLOCK = time[1] * 1000 + math.floor(time[2] / 1000)
end
-- The present on the tenant's timeline.
local NOW = CLOCK
if BEGAN then
  LATEST = tonumber(LATEST) or CLOCK
  READ = tonumber(READ) or LATEST
  if CLOCK < READ then
    READ = CLOCK
    redis.call('HSET', COUNTERS, 'clock', CLOCK)
  end
  NOW = LATEST + CLOCK - READ
end

-- Whether the counters can be believed: they are there, and what was lost is in them or still being gathered.
local function believed()
  return BEGAN and (READY or NOW < tonumber(GATHERS))
end

-- Called last by every script that changes something.
local function keep()
  redis.call('HSET', COUNTERS, 'now', NOW, 'clock', CLOCK)
  for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, KEEP_S)
  end
end

local function second_of(ms)
  return math.floor(ms / 1000)
end

-- The request ids of a hash, in order.
local function ids_of(key)
  local ids = redis.call('HKEYS', key)
  table.sort(ids)
  table.remove(ids, 1) -- the mark
  return ids
end

-- For how many ms from now a row with a value counts as used up because of a loss; 0 or less if it does not.
local function full_for(kind, value, detail)
  if not LOST then
    return 0
  elseif kind == 'rate' then
    return BEGAN + math.ceil(value * WEIGHT / detail) - NOW
  elseif kind == 'window' then
    return (second_of(BEGAN) + WINDOW_S + 1) * 1000 - NOW
  end
  return READY and 0 or GATHERS - NOW
end

-- What counts of a window, without the seconds that have left it since the last call: each is dropped once.
local function window_used(row)
  local oldest = second_of(NOW) - WINDOW_S
  local used, from = unpack(redis.call('HMGET', COUNTERS, row, row .. ':from'))
  used, from = tonumber(used) or 0, tonumber(from)
  if from == oldest then
    return used
  end
  local gone = 0
  for old = from or oldest, math.min(oldest - 1, (from or oldest) + WINDOW_S) do
    local bucket = row .. ':' .. old
    gone = gone + (tonumber(redis.call('HGET', COUNTERS, bucket)) or 0)
    redis.call('HDEL', COUNTERS, bucket, bucket .. ':open')
  end
  redis.call('HSET', COUNTERS, row .. ':from', oldest)
  return redis.call('HINCRBY', COUNTERS, row, 0 - gone)
end

-- The amounts of a window's 61 seconds, oldest first; with a suffix, what is kept of each of them beside.
local function window_buckets(row, suffix)
  local fields, second = {}, second_of(NOW)
  for old = second - WINDOW_S, second do
    fields[#fields + 1] = row .. ':' .. old .. (suffix or '')
  end
  local amounts = redis.call('HMGET', COUNTERS, unpack(fields))
  for i = 1, #fields do
    amounts[i] = tonumber(amounts[i]) or 0
  end
  return amounts
end

-- In how many ms `amount` of what counts of a window counts no longer.
local function window_wait(row, amount)
  local second, freed = second_of(NOW), 0
  for i, taken in ipairs(window_buckets(row)) do
    freed = freed + taken
    if freed >= amount then
      return (second + i) * 1000 - NOW
    end
  end
  return 0
end

-- What has not drained of a rate, `per_second` requests of it in a second.
local function rate_level(row, per_second)
  local level, at = unpack(redis.call('HMGET', COUNTERS, row, row .. ':at'))
  return math.max(0, (tonumber(level) or 0) - per_second * (NOW - (tonumber(at) or NOW)))
end

-- The field of a period's integer; nothing if nothing is remembered of the period.
local function period_field(row, period)
  if redis.call('HGET', COUNTERS, row .. ':period') == period then
    return row
  end
  local other = row .. ':' .. period
  return redis.call('HEXISTS', COUNTERS, other) == 1 and other
end

-- What counts in a period; nothing if nothing is remembered of it.
local function period_used(row, period)
  local used, latest = unpack(redis.call('HMGET', COUNTERS, row, row .. ':period'))
  if latest ~= period then
    used = redis.call('HGET', COUNTERS, row .. ':' .. period)
  end
  return used and tonumber(used)
end

-- Makes a period the latest one, and forgets the one that was named before all others when there are more than four.
local function name_period(row, period)
  local names = {}
  for name in (redis.call('HGET', COUNTERS, row .. ':others') or ''):gmatch('%S+') do
    if name ~= period then
      names[#names + 1] = name
    end
  end
  local total, open, latest = unpack(redis.call('HMGET', COUNTERS, row, row .. ':open', row .. ':period'))
  local other = row .. ':' .. period
  local its_total, its_open = unpack(redis.call('HMGET', COUNTERS, other, other .. ':open'))
  redis.call('HDEL', COUNTERS, other, other .. ':open')
  if latest then
    redis.call('HSET', COUNTERS, row .. ':' .. latest, total, row .. ':' .. latest .. ':open', open or 0)
    names[#names + 1] = latest
  end
  if #names == 4 then
    local oldest = row .. ':' .. table.remove(names, 1)
    redis.call('HDEL', COUNTERS, oldest, oldest .. ':open')
  end
  redis.call('HSET', COUNTERS, row, its_total or 0, row .. ':open', its_open or 0, row .. ':period', period,
    row .. ':others', table.concat(names, ' '))
end

local function take_period(row, period, amount)
  if redis.call('HGET', COUNTERS, row .. ':period') ~= period then
    name_period(row, period)
  end
  if amount ~= '0' then
    redis.call('HINCRBY', COUNTERS, row, amount)
  end
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

-- Counts what a reservation took of windows as held by a running request, by sign 1, or no longer, by sign -1.
local function open_windows(reservation, sign)
  local second = second_of(reservation.at)
  if second >= second_of(NOW) - WINDOW_S then
    for row, taken in pairs(reservation.windows) do
      if taken ~= '0' then
        redis.call('HINCRBY', COUNTERS, row .. ':' .. second .. ':open', 0 + sign * taken)
      end
    end
  end
end

-- The same of days and months.
local function open_periods(reservation, sign)
  for row, taken in pairs(reservation.periods) do
    local field = taken[1] ~= '0' and period_field(row, taken[2])
    if field then
      redis.call('HINCRBY', COUNTERS, field .. ':open', 0 + sign * taken[1])
    end
  end
end

-- Holds what a reservation holds, by sign 1, or gives it back, by sign -1; of days and months, see `open_periods`.
local function hold(reservation, sign)
  for row, taken in pairs(reservation.holds) do
    redis.call('HINCRBY', COUNTERS, row, 0 + sign * taken)
  end
  open_windows(reservation, sign)
end

-- Remembers how long a settled request took, of the latest 15, each between 0.1 and 30 s.
local function took(ms)
  local latest = { string.format('%.0f', math.max(100, math.min(ms, 30000))) }
  for each in (TOOK or ''):gmatch('%d+') do
    if #latest < 15 then
      latest[#latest + 1] = each
    end
  end
  redis.call('HSET', COUNTERS, 'took', table.concat(latest, ','))
end

-- The median of how long the latest settled requests took, or what is given where there are none.
local function median(unknown)
  local latest = {}
  for each in (TOOK or ''):gmatch('%d+') do
    latest[#latest + 1] = tonumber(each)
  end
  table.sort(latest)
  return latest[math.ceil(#latest / 2)] or tonumber(unknown)
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

-- Changes what was taken in a period, if anything is remembered of it.
local function correct_period(row, period, difference)
  local field = difference ~= 0 and period_field(row, period)
  if field then
    redis.call('HINCRBY', COUNTERS, field, difference)
  end
end

-- Has days and months be charged with what the ledger says of a settled request.
local function charge(id, settled, observed)
  for row, period in pairs(settled.periods) do
    local limit = limit_of(row)
    correct_period(row, period, (tonumber(observed.amounts[limit]) or 0) - (tonumber(settled.amounts[limit]) or 0))
  end
  settled.amounts, settled.position, settled.short = observed.amounts, observed.position, nil
  redis.call('HSET', SETTLED, id, cjson.encode(settled))
end

-- Replaces what a reservation took by what was used, by limit; a limit that is not named was not used.
-- Of days and months the ledger knows better, if it has at least so many tokens: with fewer, some of its rows are still to come.
local function finish(id, reservation, amounts, least, remembered)
  local observed = reservation.observed
  local known = observed and tokens_of(observed.amounts) >= least
  local charged = known and observed.amounts or amounts
  local function difference(row, taken)
    return (tonumber(amounts[limit_of(row)]) or 0) - taken
  end
  local admitted_in = second_of(reservation.at)
  if admitted_in >= second_of(NOW) - WINDOW_S then
    for row, taken in pairs(reservation.windows) do
      local more = difference(row, taken)
      if more ~= 0 then
        redis.call('HINCRBY', COUNTERS, row, more)
        redis.call('HINCRBY', COUNTERS, row .. ':' .. admitted_in, more)
      end
    end
  end
  local settled = {
    owner = reservation.router .. '/' .. reservation.incarnation, position = known and observed.position or 0, least = least,
    periods = {}, amounts = {}, short = not known and observed or nil,
  }
  for row, taken in pairs(reservation.periods) do
    local limit = limit_of(row)
    local field, more = period_field(row, taken[2]), (tonumber(charged[limit]) or 0) - taken[1]
    if field and more ~= 0 then
      redis.call('HINCRBY', COUNTERS, field, more)
    end
    if field and reservation.state == 'held' and taken[1] ~= '0' then
      redis.call('HINCRBY', COUNTERS, field .. ':open', 0 - taken[1])
    end
    settled.periods[row], settled.amounts[limit] = taken[2], charged[limit]
  end
  if reservation.state == 'held' then
    hold(reservation, -1)
  end
  redis.call('HDEL', RESERVATIONS, id)
  redis.call('HSET', SETTLED, id, cjson.encode(settled))
  redis.call('ZADD', DUE, NOW + remembered, id)
end
