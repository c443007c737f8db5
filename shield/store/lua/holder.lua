-- holder.lua: one record in the set of its holder's records, by itself: while their slot is on its way to another server
-- of a cluster the two may lie on both, and no script may touch them together (see keyed.lua).
--
-- KEYS[1]  the holder's set
-- ARGV[1]  little-endian "c16c16dddd": the record's address and who would own it; what to do (1 reserve a place for so
--          long, 2 the record is there for so long, 3 for at least so long, 4 give the place back); how long in us; for 1
--          how many records the holder may have; slack_ms
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME
--
-- Returns an integer: 1 done; 0 there is no room for it; 2 the record has a place already, and needs no other.
--
-- A reserved place is a member like a record's: its address, and behind it who reserved it, so that nobody gives back
-- what is another's.
-- Number budget: see level.lua.

local RESERVE, LONGER, LEAVE = 1, 3, 4

local address, owner, action, lasts, most, slack_ms = struct.unpack('<c16c16dddd', ARGV[1])
local set, place, now = KEYS[1], address .. owner, tonumber(ARGV[2]) or server_now()

local function refused(why)
  return string.find(why, 'WRONGTYPE', 1, true) and bad_value(set) or redis.error_reply(why)
end

if action == LEAVE then
  local gone = redis.pcall('ZREM', set, place)
  return type(gone) == 'table' and bad_value(set) or 1
end
local expires = string.format('%.0f', now + lasts)
if action == RESERVE then
  -- Its score, in the one command that smallest accounts have for it.
  local held = redis.pcall('ZADD', set, 'XX', 'INCR', '0', address)
  if type(held) == 'table' then return refused(held.err) end
  if held and tonumber(held) > now then return 2 end
  if redis.call('ZCOUNT', set, string.format('(%.0f', now), '+inf') >= most then return 0 end
end
local member = action == RESERVE and place or address
local added = redis.pcall('ZADD', set, action == LONGER and 'GT' or 'CH', expires, member)
if type(added) == 'table' then return refused(added.err) end
if action ~= RESERVE then redis.call('ZREM', set, place) end
-- Not before: a set that was empty for a moment would be gone, and of a slot on its way no key can be made here.
redis.call('ZREMRANGEBYSCORE', set, '-inf', string.format('%.0f', now))
local last = tonumber(redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIRE', set, string.format('%.0f', math.ceil((last - now) / 1000) + slack_ms))
return 1
