-- level.lua: the algorithms over one stored state. Prepended to check.lua, settle.lua and release.lua, so that each is
-- written once; it does nothing by itself and has no KEYS, ARGV or return of its own.
--
-- A state is one string key, packed by struct, little-endian, a tag byte first (kind and version of the layout):
--   token bucket  "<Bdddd"  17, units, ticks, at_us, p    level = units + ticks / p, counted at at_us
--   window        "<Bddd"   33, cur, prev, start_us       prev is 0 in a fixed window
-- It holds what was used and when, never a limit or a rate: those are applied when it is touched. p says what a tick
-- was. Leases of a concurrency limit are a sorted set: member "lease_id:n", score the instant (us) from which the
-- place is free again. Places that have run out are not counted; they are removed when others are taken or released.
--
-- A charge arrives as eight doubles: kind, flags, cost, limit, a, b, c, d, where a to d are
--   1 token bucket  a = c: units drained per p us; b = p; c = us until a full bucket has drained, rounded up;
--                   d = us a unit takes to drain under the slowest numbers this limit has, rounded up to a double
--   2 sliding, 3 fixed window   a = the window's length in us
--   4 calendar window           a to d = four consecutive boundaries (us) around the caller's clock
--   5 concurrency               a = ttl of a lease in us
--
-- Number budget: Lua has doubles, exact up to 2^53. Instants < 2^52 us; c <= p < 2^42; windows < 2^42 us; limit <=
-- 1e9, so units < 2^32; cost < 2^53. A product that could pass 2^53 goes through muldivmod. Numbers become text by
-- %.0f only: `..` and tostring keep 14 digits. Integers below 2^53 are exact as integer replies.
--
-- Time to live: until a fresh state would answer the same under any numbers of the limit, rounded up to whole ms and
-- never 0, plus the caller's slack. The slack is for what the arguments cannot know: another node may still hold, or a
-- reload bring, slower numbers than these, and the clock that expires keys may be stepped forward.

local floor, ceil, byte, format = math.floor, math.ceil, string.byte, string.format
local BUCKET, SLIDING, CALENDAR, CONCURRENCY = 1, 2, 4, 5
local BUCKET_TAG, BUCKET_BYTES, BUCKET_FORMAT = 17, 33, '<Bdddd'
local WINDOW_TAG, WINDOW_BYTES, WINDOW_FORMAT = 33, 25, '<Bddd'
local TWO32, TWO42, TWO53 = 4294967296, 4398046511104, 9007199254740992

local function server_now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- floor(a * b / d) and what is left over, exact, for integers a < 2^53, b <= 2^42, 0 < d <= 2^42. Lua's x % d is x -
-- floor(x / d) * d, and exact below 2^53: a quotient just under a whole number is further from it than half a step of
-- the double. A quotient past 2^53 comes out rounded, which no caller can tell from the truth.
local function muldivmod(a, b, d)
  local product = a * b
  if product < TWO53 then
    local rest = product % d
    return (product - rest) / d, rest
  end
  -- Ten bits of `a` at a time: rest < d <= 2^42 and digit < 2^10, so both terms stay at or below 2^52 and their sum
  -- below 2^53 (rest <= d - 1 and digit <= 1023).
  local quotient, rest, scale = 0, 0, 1125899906842624
  while scale >= 1 do
    local digit = floor(a / scale)
    a = a - digit * scale
    local part = rest * 1024 + digit * b
    rest = part % d
    quotient = quotient * 1024 + (part - rest) / d
    scale = scale / 1024
  end
  return quotient, rest
end

-- The state of a charge as stored: true, or false when the value was not written by this version of these scripts.
local function read_state(s, raw)
  if s.kind == BUCKET then
    if #raw ~= BUCKET_BYTES or byte(raw) ~= BUCKET_TAG then return false end
    local _, units, ticks, at, p = struct.unpack(BUCKET_FORMAT, raw)
    s.units, s.ticks, s.at, s.p = units, ticks, at, p
    -- Comparisons with what is no number are false, so only whole numbers within bounds pass.
    return units >= 0 and units < TWO32 and units % 1 == 0 and at >= 0 and at < TWO53 and at % 1 == 0
      and p > 0 and p < TWO42 and p % 1 == 0 and ticks >= 0 and ticks < p and ticks % 1 == 0
  end
  if #raw ~= WINDOW_BYTES or byte(raw) ~= WINDOW_TAG then return false end
  local _, cur, prev, start = struct.unpack(WINDOW_FORMAT, raw)
  s.cur, s.prev, s.start = cur, prev, start
  return cur >= 0 and cur < TWO32 and cur % 1 == 0 and prev >= 0 and prev < TWO32 and prev % 1 == 0
    and start >= 0 and start < TWO53 and start % 1 == 0
end

-- Drains a token bucket to `now` under the charge's numbers.
local function touch_bucket(s, now)
  local c, p = s.a, s.b
  if not s.p then
    s.units, s.ticks, s.at, s.p = 0, 0, now, p
    return
  end
  if s.p ~= p then
    -- Units are kept when numbers change. The part of one is rounded up to a new tick: nothing is minted.
    local ticks, rest = muldivmod(s.ticks, p, s.p)
    if rest > 0 then ticks = ticks + 1 end
    if ticks == p then
      s.units, ticks = s.units + 1, 0
    end
    s.ticks, s.p = ticks, p
  end
  if s.at > now then
    if s.at - now > s.c then
      -- Further ahead than any use of this bucket explains: count it as all used, and refill from here. Debt stays.
      if s.units < s.limit then s.units, s.ticks = s.limit, 0 end
      s.at, s.rebased = now, true
    end
    return
  end
  local units, ticks = muldivmod(now - s.at, c, p)
  units, ticks = s.units - units, s.ticks - ticks
  if ticks < 0 then
    units, ticks = units - 1, ticks + p
  end
  if units < 0 then
    units, ticks = 0, 0
  end
  s.units, s.ticks, s.at = units, ticks, now
end

-- Moves a window to the one `now` lies in; s.finish is the end of the state's window. False when the boundaries of a
-- calendar do not reach, which only another try with others can mend.
local function touch_window(s, now)
  local start, length
  if s.kind == CALENDAR then
    if now >= s.a and now < s.b then
      start, length = s.a, s.b - s.a
    elseif now >= s.b and now < s.c then
      start, length = s.b, s.c - s.b
    elseif now >= s.c and now < s.d then
      start, length = s.c, s.d - s.c
    else
      return false
    end
  else
    length = s.a
    start = now - now % length
  end
  if not s.start then
    s.cur, s.prev, s.start = 0, 0, start
  elseif s.start > start then
    if s.start - start > length then
      s.cur, s.prev, s.start, s.rebased = math.max(s.cur, s.limit), 0, start, true
    end
  elseif s.start < start then
    local follows = s.kind == SLIDING and start - s.start == length
    s.prev = follows and s.cur or 0
    s.cur, s.start = 0, start
  end
  if s.kind ~= CALENDAR then
    s.finish = s.start + length
  elseif s.start < s.b then
    s.finish = s.b
  elseif s.start < s.c then
    s.finish = s.c
  elseif s.start < s.d then
    s.finish = s.d
  else
    return false
  end
  return true
end

-- What of the previous window still counts at `now`, in whole units, rounded up. Comparing it with a whole slack is
-- the same as comparing prev * (W - e) with slack * W.
local function fading(s, now)
  if s.prev == 0 then return 0 end
  local left = s.a
  if now > s.start then left = left - (now - s.start) end
  local units, rest = muldivmod(s.prev, left, s.a)
  return rest > 0 and units + 1 or units
end

-- The largest whole cost that fits; negative in debt.
local function remaining(s, now)
  if s.kind == BUCKET then
    return s.limit - s.units - (s.ticks > 0 and 1 or 0)
  elseif s.kind == CONCURRENCY then
    return s.limit - s.in_use
  end
  return s.limit - s.cur - fading(s, now)
end

-- Writes a state with its time to live. Returns nil, or the error: only a script's first write can be refused, for want
-- of memory; Redis lets a script that has written run to its end.
local function write_state(s, now, slack_ms)
  local value, us
  if s.kind == BUCKET then
    value = struct.pack(BUCKET_FORMAT, BUCKET_TAG, s.units, s.ticks, s.at, s.p)
    -- Four roundings of doubles are within the eight half-steps added here.
    us = (s.at - now) + (s.units + s.ticks / s.p) * s.d * (1 + 8.881784197001252e-16)
  else
    value = struct.pack(WINDOW_FORMAT, WINDOW_TAG, s.cur, s.prev, s.start)
    us = s.finish - now
    if s.kind == SLIDING and s.cur > 0 then us = us + s.a end
  end
  local ms = ceil(us / 1000) + slack_ms
  if ms < 1 then ms = 1 end
  if ms >= TWO53 then ms = TWO53 - 1 end
  local reply = redis.pcall('SET', s.key, value, 'PX', format('%.0f', ms))
  return reply.err
end

local function bad_value(s)
  local what = ' was not written by this version of Shield; it was left alone'
  return redis.error_reply('SHIELD the value at ' .. s.key .. what)
end
