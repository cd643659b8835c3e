-- Adds the ledger's sums to days and months, and makes the tenant ready.
--
-- ARGV[2] when the counters began, ms   [3] number of requests that the sums leave out   then for each row: name, period, amount
-- Returns 1; or 0 if the tenant is ready, or lost again, or other requests are in the books.

if not BEGAN or READY or BEGAN ~= ARGV[2] or in_books() ~= tonumber(ARGV[3]) then
  return 0
end
for at = 4, #ARGV, 3 do
  take_period(unpack(ARGV, at, at + 2))
end
redis.call('HSET', COUNTERS, 'ready', 1)
keep()
return 1
