-- Gives a lease up, unless its term is over; the specification is forebay.scheduler.domain.lease.Tenure.
--
-- KEYS[1] as in bid.lua
-- ARGV[1] epoch of the term   [2] 1 if a checkpoint is given   [3] the checkpoint

if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'until', '0')
  if ARGV[2] == '1' then
    redis.call('HSET', KEYS[1], 'checkpoint', ARGV[3])
  end
end
