-- level.lua: the algorithms over one stored state. Prepended to check.lua, settle.lua, release.lua and lease.lua, so that
-- each is written once; it does nothing by itself and has no KEYS, ARGV or return of its own.
--
-- A cell is one string key: all levels of one partition key, packed by struct, little-endian. The first byte is the
-- version of this layout; then a section for each limit: "<c8Bddddd" id, tag, until_us, and
--   token bucket  tag 1   units, ticks, at_us, p    level = units + ticks / p, counted at at_us
--   window        tag 2   cur, prev, start_us, 0    prev is 0 in a fixed window
--   lease         tag 3   units, spent, lease, 0    of the bucket of that id, behind it: units that a node holds and has
--                         not reported spent, what it has reported, its name (< 2^53); until_us is when it runs out
-- id is a hash of the limit's identity; from until_us on a fresh state would answer the same. A section holds what was
-- used and when, never a limit or a rate: those are applied when it is touched. p says what a tick was. Leases of a
-- concurrency limit are a sorted set of their own: member "lease_id:n", score the instant (us) from which the place is
-- free again. Places that have run out are not counted; they are removed when others are taken or released.
--
-- Units out on leases are in no level yet, and count as used for whoever asks. What a node reports spent moves to the
-- level, what it gives back is out no more, and what is left of a lease when it runs out is charged whole as of that
-- instant. A cell with leases has another version, which releases that know none do not touch.
--
-- A charge `ch` says what a limit is: kind, flags, limit, a, b, c, d, where a to d are
--   1 token bucket  a = c: units drained per p us; b = p; c = us until a full bucket has drained, rounded up;
--                   d = us a unit takes to drain under the slowest numbers this limit has, rounded up to a double
--   2 sliding, 3 fixed window   a = the window's length in us
--   4 calendar window           a to d = four consecutive boundaries (us) around the caller's clock
--   5 concurrency               a = ttl of a lease in us
-- What it finds and does is worked out in a table `s` of its own, and comes into the cell by `keep` alone: a request
-- that takes nothing leaves the cell as it was, also for the next request of the same step.
--
-- Number budget: Lua has doubles, exact up to 2^53. Instants < 2^52 us; c <= p < 2^42; windows < 2^42 us; limit <=
-- 1e9, so units < 2^32; cost < 2^53. A product that could pass 2^53 goes through muldivmod. Numbers become text by
-- %.0f only: `..` and tostring keep 14 digits. Integers below 2^53 are exact as integer replies.
--
-- Time to live: until a fresh state would answer the same under any numbers of the limit, rounded up to whole ms and
-- never 0, plus the caller's slack. The slack is for what the arguments cannot know: another node may still hold, or a
-- reload bring, slower numbers than these, and the clock that expires keys may be stepped forward. A cell lives as long
-- as the longest of its sections. Where policies came and went, so that there are more than MAX_SECTIONS, those whose time
-- is over are left out when the cell is next written.

-- Constants are put in place of their names when the script is loaded: a name would be looked for by every function
-- that knows it, each time the script runs.
local BUCKET, SLIDING, CALENDAR, CONCURRENCY = 1, 2, 4, 5
local LAYOUT, LAYOUT_BYTE, LEASED_LAYOUT, LEASED_LAYOUT_BYTE = 2, '\2', 3, '\3'
local SECTION_FORMAT, SECTION_BYTES = '<c8Bddddd', 49
local BUCKET_TAG, WINDOW_TAG, LEASE_TAG = 1, 2, 3
local MAX_SECTIONS = 16
local FENCE_FORMAT, FENCE_BYTES, WIDEN_SLACK = '<dddd', 32, 1000000
local LONGEST_LEASE_US = 2000000
local TWO32, TWO42, TWO53 = 4294967296, 4398046511104, 9007199254740992

local function server_now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- math.floor(a * b / d) and what is left over, exact, for integers a < 2^53, b <= 2^42, 0 < d <= 2^42. Lua's x % d is x -
-- math.floor(x / d) * d, and exact below 2^53: a quotient just under a whole number is further from it than half a step of
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
    local digit = math.floor(a / scale)
    a = a - digit * scale
    local part = rest * 1024 + digit * b
    rest = part % d
    quotient = quotient * 1024 + (part - rest) / d
    scale = scale / 1024
  end
  return quotient, rest
end

-- A cell from its value, false when it was not written by this version of these scripts.
local function read_cell(key, raw)
  local cell = {key = key, changed = false}
  if not raw then return cell end
  local bytes, position, layout = #raw, 2, string.byte(raw)
  if (layout ~= LAYOUT and layout ~= LEASED_LAYOUT) or bytes % SECTION_BYTES ~= 1 then return false end
  while position < bytes do
    local id, tag, until_us, w, x, y, z
    id, tag, until_us, w, x, y, z, position = struct.unpack(SECTION_FORMAT, raw, position)
    -- Comparisons with what is no number are false, so only whole numbers within bounds pass.
    if not (w >= 0 and w < TWO32 and w % 1 == 0 and x >= 0 and x % 1 == 0 and y >= 0 and y < TWO53 and y % 1 == 0
        and until_us < 1 / 0) then
      return false
    end
    local held
    if tag == BUCKET_TAG then
      if not (x < z and z < TWO42 and z % 1 == 0) then return false end
      held = {id = id, tag = tag, until_us = until_us, units = w, ticks = x, at = y, p = z, fresh = false}
    elseif tag == WINDOW_TAG and x < TWO32 then
      held = {id = id, tag = tag, until_us = until_us, cur = w, prev = x, start = y, fresh = false}
    elseif tag == LEASE_TAG and layout == LEASED_LAYOUT and x < TWO32 and until_us >= 0 and until_us % 1 == 0 then
      local bucket = cell[id]
      if not bucket or bucket.tag ~= BUCKET_TAG then return false end
      if not bucket.leases then bucket.leases = {} end
      bucket.leases[#bucket.leases + 1] = {lease = y, units = w, spent = x, until_us = until_us}
    else
      return false
    end
    if held then cell[#cell + 1], cell[id] = held, held end
  end
  return cell
end

-- The cells of these names, false for one that is not this version's or of another type: MGET answers nothing for the
-- latter, and writing there would reset it silently.
local function read_cells(names)
  local cells, missing = {}, {}
  if #names == 0 then return cells end
  local found = redis.call('MGET', unpack(names))
  for i = 1, #names do
    cells[names[i]] = read_cell(names[i], found[i])
    if not found[i] then missing[#missing + 1] = names[i] end
  end
  if #missing > 0 and redis.call('EXISTS', unpack(missing)) > 0 then
    for i = 1, #missing do
      if redis.call('EXISTS', missing[i]) > 0 then cells[missing[i]] = false end
    end
  end
  return cells
end

-- A token bucket drained to `now` under the charge's numbers; `out` units of it are on `leases`, the last of which runs out
-- at `leases.last_us`. A lease that has run out is charged as of that instant. No more than eight fields: Lua makes room
-- for sixteen then, and every check pays for it.
local function touch_bucket(ch, held, cost, now)
  if not held then
    return {cost = cost, fits = false, rebased = false, units = 0, ticks = 0, at = now, out = 0}
  end
  local c, p = ch.a, ch.b
  local units, ticks, at, rebased = held.units, held.ticks, held.at, false
  if held.p ~= p then
    -- Units are kept when numbers change. The part of one is rounded up to a new tick: nothing is minted.
    local rest
    ticks, rest = muldivmod(ticks, p, held.p)
    if rest > 0 then ticks = ticks + 1 end
    if ticks == p then
      units, ticks = units + 1, 0
    end
  end
  if at > now and at - now > ch.c then
    -- Further ahead than any use of this bucket explains: count it as all used, and refill from here. Debt stays.
    if units < ch.limit then units, ticks = ch.limit, 0 end
    at, rebased = now, true
  end
  local out, leases, due, n = 0, nil, nil, 0
  if held.leases then
    leases, due = {last_us = 0}, {}
    for i = 1, #held.leases do
      local lease = held.leases[i]
      lease = {lease = lease.lease, units = lease.units, spent = lease.spent, until_us = lease.until_us}
      if lease.until_us > now + LONGEST_LEASE_US then
        -- The clock was set back: no node holds one for longer than this.
        lease.until_us, rebased = now + LONGEST_LEASE_US, true
      end
      if lease.until_us <= now then
        due[#due + 1] = lease
      else
        leases[#leases + 1] = lease
        out, leases.last_us = out + lease.units, math.max(leases.last_us, lease.until_us)
      end
    end
    if #due > 1 then table.sort(due, function(one, other) return one.until_us < other.until_us end) end
  end
  repeat
    n = n + 1
    local lease = due and due[n]
    local target = lease and lease.until_us or now
    if at < target then
      local drained, part = muldivmod(target - at, c, p)
      units, ticks = units - drained, ticks - part
      if ticks < 0 then
        units, ticks = units - 1, ticks + p
      end
      if units < 0 then
        units, ticks = 0, 0
      end
      at = target
    end
    if lease then units = units + lease.units end
  until not lease
  return {cost = cost, fits = false, rebased = rebased, units = units, ticks = ticks, at = at, out = out, leases = leases}
end

-- A window moved to the one `now` lies in; `finish` is the end of the state's window. Nil when the boundaries of a
-- calendar do not reach, which only another try with others can mend.
local function touch_window(ch, held, cost, now)
  local start, length, finish
  if ch.kind == CALENDAR then
    if now >= ch.a and now < ch.b then
      start, length = ch.a, ch.b - ch.a
    elseif now >= ch.b and now < ch.c then
      start, length = ch.b, ch.c - ch.b
    elseif now >= ch.c and now < ch.d then
      start, length = ch.c, ch.d - ch.c
    else
      return nil
    end
  else
    length = ch.a
    start = now - now % length
  end
  local cur, prev, rebased = 0, 0, false
  if held then
    if held.start > start + length then
      cur, rebased = math.max(held.cur, ch.limit), true
    elseif held.start >= start then
      cur, prev, start = held.cur, held.prev, held.start
    elseif ch.kind == SLIDING and start - held.start == length then
      prev = held.cur
    end
  end
  if ch.kind ~= CALENDAR then
    finish = start + length
  elseif start < ch.b then
    finish = ch.b
  elseif start < ch.c then
    finish = ch.c
  elseif start < ch.d then
    finish = ch.d
  else
    return nil
  end
  return {cost = cost, fits = false, rebased = rebased, cur = cur, prev = prev, start = start, finish = finish}
end

-- What of the previous window still counts at `now`, in whole units, rounded up. Comparing it with a whole slack is
-- the same as comparing prev * (W - e) with slack * W.
local function fading(s, ch, now)
  if s.prev == 0 then return 0 end
  local left = ch.a
  if now > s.start then left = left - (now - s.start) end
  local units, rest = muldivmod(s.prev, left, ch.a)
  return rest > 0 and units + 1 or units
end

-- The largest whole cost that fits; negative in debt.
local function remaining(s, ch, now)
  if ch.kind == BUCKET then
    return ch.limit - s.units - s.out - (s.ticks > 0 and 1 or 0)
  elseif ch.kind == CONCURRENCY then
    return ch.limit - s.in_use
  end
  return ch.limit - s.cur - fading(s, ch, now)
end

-- Puts what was worked out into the cell, to be written with it.
local function keep(s, ch, cell, now)
  local held, until_us = cell[ch.id], 0
  if ch.kind == BUCKET then
    -- Four roundings of doubles are within the eight half-steps added here, that of the sum within the microsecond. What
    -- is out on leases is charged when the last of them runs out, if not before.
    local from_us = s.leases and math.max(s.leases.last_us, s.at) or s.at
    until_us = from_us + (s.units + s.out + s.ticks / ch.b) * ch.d * (1 + 8.881784197001252e-16) + 1
  else
    until_us = s.finish
    if ch.kind == SLIDING and s.cur > 0 then until_us = until_us + ch.a end
  end
  if not held then
    if ch.kind == BUCKET then
      held = {id = ch.id, tag = BUCKET_TAG, until_us = 0, units = 0, ticks = 0, at = 0, p = 0, fresh = true}
    else
      held = {id = ch.id, tag = WINDOW_TAG, until_us = 0, cur = 0, prev = 0, start = 0, fresh = true}
    end
    cell[#cell + 1], cell[ch.id] = held, held
  end
  held.until_us = until_us
  if ch.kind == BUCKET then
    held.units, held.ticks, held.at, held.p, held.leases = s.units, s.ticks, s.at, ch.b, s.leases
  else
    held.cur, held.prev, held.start = s.cur, s.prev, s.start
  end
  held.fresh = true
  cell.changed = true
end

-- Writes a cell with its time to live. Returns nil, or the error: only a script's first write can be refused, for want
-- of memory; Redis lets a script that has written run to its end.
local function write_cell(cell, now, slack_ms)
  local value, until_us, layout = '', now, LAYOUT_BYTE
  for i = 1, #cell do
    local held = cell[i]
    if held.fresh or #cell <= MAX_SECTIONS or held.until_us + slack_ms * 1000 > now then
      if held.until_us > until_us then until_us = held.until_us end
      if held.tag == BUCKET_TAG then
        value = value .. struct.pack(SECTION_FORMAT, held.id, BUCKET_TAG, held.until_us, held.units, held.ticks, held.at, held.p)
        for n = 1, held.leases and #held.leases or 0 do
          local lease = held.leases[n]
          value = value .. struct.pack(SECTION_FORMAT, held.id, LEASE_TAG, lease.until_us, lease.units, lease.spent, lease.lease, 0)
          layout = LEASED_LAYOUT_BYTE
        end
      else
        value = value .. struct.pack(SECTION_FORMAT, held.id, WINDOW_TAG, held.until_us, held.cur, held.prev, held.start, 0)
      end
    end
  end
  local ms = math.ceil((until_us - now) / 1000) + slack_ms
  if ms < 1 then ms = 1 end
  if ms >= TWO53 then ms = TWO53 - 1 end
  local reply = redis.pcall('SET', cell.key, layout .. value, 'PX', string.format('%.0f', ms))
  return reply.err
end

-- What is known of nonces under this prefix, in one key of its own: "<dddd" since, widened, span, before, then the run id
-- of the server that wrote it. No nonce is known from before `since`; nonces taken before `widened` (0: never) are held
-- for `before` us after their timestamp, those since for `span`. False where nothing is known.
local function read_fence(key)
  local raw = redis.pcall('GET', key)
  if type(raw) ~= 'string' or #raw < FENCE_BYTES then return false end
  local since, widened, span, before = struct.unpack(FENCE_FORMAT, raw)
  return {since = since, widened = widened, span = span, before = before, run = string.sub(raw, FENCE_BYTES + 1)}
end

local function write_fence(key, fence)
  local value = struct.pack(FENCE_FORMAT, fence.since, fence.widened, fence.span, fence.before) .. fence.run
  local reply = redis.pcall('SET', key, value)
  return reply.err
end

-- Which run of which server this is; empty where the account may not ask.
local function server_run()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

local function bad_value(key)
  local what = ' was not written by this version of Shield; it was left alone'
  return redis.error_reply('SHIELD the value at ' .. key .. what)
end
