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
-- What it finds and does is worked out beside the cell, and comes into it by `keep` alone: a request that takes nothing
-- leaves the cell as it was, also for the next request of the same step.
--
-- Number budget: Lua has doubles, exact up to 2^53. Instants < 2^52 us; c <= p < 2^42; windows < 2^42 us; limit <=
-- 1e9, so units < 2^32; cost < 2^53. A product that could pass 2^53 goes through muldivmod. Numbers become text by
-- %.0f, or as arguments of a command, which have 17 digits: `..` and tostring keep 14. Integers below 2^53 are exact as
-- doubles and as integer replies.
--
-- Time to live: until a fresh state would answer the same under any numbers of the limit, rounded up to whole ms and
-- never 0, plus the caller's slack. The slack is for what the arguments cannot know: another node may still hold, or a
-- reload bring, slower numbers than these, and the clock that expires keys may be stepped forward. A cell lives as long
-- as the longest of its sections. Where policies came and went, so that there are more than MAX_SECTIONS, those whose time
-- is over are left out when the cell is next written.

-- Constants are put in place of their names when the script is loaded: a name would be looked for by every function
-- that knows it, each time the script runs.
local BUCKET, SLIDING, CALENDAR, CONCURRENCY = 1, 2, 4, 5
local LAYOUT, LEASED_LAYOUT = 2, 3
local SECTION, SECTION_BYTES, ITEMS, AT_ONCE = 'c8Bddddd', 49, 7, 512
local BUCKET_TAG, WINDOW_TAG, LEASE_TAG = 1, 2, 3
local MAX_SECTIONS = 16
local FENCE_FORMAT, FENCE_BYTES, WIDEN_SLACK = '<dddd', 32, 1000000
local LONGEST_LEASE_US = 2000000
local TWO32, TWO42, TWO53 = 4294967296, 4398046511104, 9007199254740992

-- Names of this run: each outer one is looked up twice wherever it is used.
local call, try, pack, unpack_from, rep = redis.call, redis.pcall, struct.pack, struct.unpack, string.rep

local function server_now()
  local time = call('TIME')
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

-- What packs and unpacks a cell of so many sections.
local formats = {}
local function format_of(sections)
  local format = formats[sections]
  if not format then
    format = '<B' .. rep(SECTION, sections)
    formats[sections] = format
  end
  return format
end

-- A cell from its value, false when it was not written by this version of these scripts: a list of the layout, then seven
-- items for each section in their order, and last whether anything of it was changed.
local function read_cell(raw)
  if not raw then return {LAYOUT, false} end
  local bytes, layout = #raw, string.byte(raw)
  if (layout ~= LAYOUT and layout ~= LEASED_LAYOUT) or bytes % SECTION_BYTES ~= 1 then return false end
  -- All sections at once: a list that grows item by item is made anew time and again.
  local cell = {unpack_from(format_of(math.min((bytes - 1) / SECTION_BYTES, AT_ONCE)), raw)}
  local last = #cell
  while cell[last] <= bytes do
    local n = last
    cell[n], cell[n + 1], cell[n + 2], cell[n + 3], cell[n + 4], cell[n + 5], cell[n + 6], cell[n + 7] =
      unpack_from('<' .. SECTION, raw, cell[n])
    last = n + ITEMS
  end
  cell[last] = false
  for n = 2, last - 1, ITEMS do
    local tag, w, x, y, z = cell[n + 1], cell[n + 3], cell[n + 4], cell[n + 5], cell[n + 6]
    -- Comparisons with what is no number are false, so only whole numbers within bounds pass.
    if not (w >= 0 and w < TWO32 and w % 1 == 0 and x >= 0 and x % 1 == 0 and y >= 0 and y < TWO53 and y % 1 == 0
        and cell[n + 2] < 1 / 0) then
      return false
    end
    if tag == BUCKET_TAG then
      if not (x < z and z < TWO42 and z % 1 == 0) then return false end
    elseif tag == LEASE_TAG then
      local until_us, before = cell[n + 2], cell[n - ITEMS + 1]
      if layout ~= LEASED_LAYOUT or x >= TWO32 or until_us < 0 or until_us % 1 ~= 0 or cell[n - ITEMS] ~= cell[n]
          or (before ~= BUCKET_TAG and before ~= LEASE_TAG) then
        return false
      end
    elseif tag ~= WINDOW_TAG or x >= TWO32 then
      return false
    end
  end
  return cell
end

-- Where in its cell the section of a limit begins; its leases follow it.
local function find(cell, id)
  for n = 2, #cell - 1, ITEMS do
    if cell[n] == id then return n end
  end
end

-- The cells of these names in their order, false for one that is not this version's or of another type: MGET answers
-- nothing for the latter, and writing there would reset it silently.
local function read_cells(names)
  local cells, missing = {}, nil
  if #names == 0 then return cells end
  local found = call('MGET', unpack(names))
  for i = 1, #names do
    cells[i] = read_cell(found[i])
    if not found[i] then
      missing = missing or {}
      missing[#missing + 1] = i
    end
  end
  for i = 1, missing and #missing or 0 do
    if call('EXISTS', names[missing[i]]) > 0 then cells[missing[i]] = false end
  end
  return cells
end

-- A level after `us` of draining c units per p us, never below empty.
local function drain(units, ticks, us, c, p)
  local drained, part
  local product = us * c
  if product < TWO53 then
    part = product % p
    drained = (product - part) / p
  else
    drained, part = muldivmod(us, c, p)
  end
  units, ticks = units - drained, ticks - part
  if ticks < 0 then
    units, ticks = units - 1, ticks + p
  end
  if units < 0 then return 0, 0 end
  return units, ticks
end

-- The rest of touch_bucket for a bucket that has leases.
local function drain_leased(cell, n, ch, units, ticks, at, rebased, now)
  local leases, due, out = {last_us = 0}, {}, 0
  local m = n + ITEMS
  while cell[m + 1] == LEASE_TAG do
    local lease = {lease = cell[m + 5], units = cell[m + 3], spent = cell[m + 4], until_us = cell[m + 2]}
    m = m + ITEMS
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
  for i = 1, #due + 1 do
    local lease = due[i]
    local target = lease and lease.until_us or now
    if at < target then
      units, ticks = drain(units, ticks, target - at, ch.a, ch.b)
      at = target
    end
    if lease then units = units + lease.units end
  end
  return units, ticks, at, rebased, out, leases
end

-- The units, ticks and instant of a token bucket drained to `now` under the charge's numbers, whether a clock that was set
-- back had to be mended, how many units are out on leases, and those: nil where there are none and were none, else a list
-- whose last_us is when the last of them runs out. One that has run out is charged as of that instant. `n` is where its
-- section begins, nil for a fresh one.
local function touch_bucket(ch, cell, n, now)
  if not n then return 0, 0, now, false, 0 end
  local c, p = ch.a, ch.b
  local units, ticks, at, rebased = cell[n + 3], cell[n + 4], cell[n + 5], false
  if cell[n + 6] ~= p then
    -- Units are kept when numbers change. The part of one is rounded up to a new tick: nothing is minted.
    local rest
    ticks, rest = muldivmod(ticks, p, cell[n + 6])
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
  if cell[n + 1 + ITEMS] == LEASE_TAG then return drain_leased(cell, n, ch, units, ticks, at, rebased, now) end
  if at < now then
    units, ticks = drain(units, ticks, now - at, c, p)
    at = now
  end
  return units, ticks, at, rebased, 0
end

-- A window moved to the one `now` lies in: cur, prev, start, the end of that window, and whether a clock that was set back
-- had to be mended. Nil when the boundaries of a calendar do not reach, which only another try with others can mend.
local function touch_window(ch, cell, n, now)
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
  if n then
    local held_start = cell[n + 5]
    if held_start > start + length then
      cur, rebased = math.max(cell[n + 3], ch.limit), true
    elseif held_start >= start then
      cur, prev, start = cell[n + 3], cell[n + 4], held_start
    elseif ch.kind == SLIDING and start - held_start == length then
      prev = cell[n + 3]
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
  return cur, prev, start, finish, rebased
end

-- The largest whole cost that fits into a window; negative in debt. Of the previous window so much still counts, in whole
-- units, rounded up: comparing that with a whole slack is the same as comparing prev * (W - e) with slack * W.
local function left_in_window(ch, cur, prev, start, now)
  if prev == 0 then return ch.limit - cur end
  local share = ch.a
  if now > start then share = share - (now - start) end
  local units, rest = muldivmod(prev, share, ch.a)
  return ch.limit - cur - units - (rest > 0 and 1 or 0)
end

-- A bucket's leases behind its section, which begins at `n`, in place of those that were there.
local function put_leases(cell, n, leases)
  local from, behind, last = n + ITEMS, {}, #cell
  local to = from
  while cell[to + 1] == LEASE_TAG do to = to + ITEMS end
  for m = to, last - 1 do behind[#behind + 1] = cell[m] end
  for i = 1, #leases do
    local lease = leases[i]
    cell[from], cell[from + 1], cell[from + 2], cell[from + 3], cell[from + 4], cell[from + 5], cell[from + 6] =
      cell[n], LEASE_TAG, lease.until_us, lease.units, lease.spent, lease.lease, 0
    from = from + ITEMS
  end
  for i = 1, #behind do cell[from + i - 1] = behind[i] end
  from = from + #behind
  cell[from] = true
  for m = last, from + 1, -1 do cell[m] = nil end
end

-- Puts what was worked out into the cell, to be written with it: of a bucket units, ticks, at, how many are out and those
-- leases; of a window cur, prev, start and finish. `n` is where the section begins, nil for a fresh one.
local function keep(cell, n, ch, w, x, y, out, leases)
  local last, until_us = #cell, nil
  if not n then
    n, last = last, last + ITEMS
    cell[n], cell[n + 1] = ch.id, ch.kind == BUCKET and BUCKET_TAG or WINDOW_TAG
  end
  if ch.kind == BUCKET then
    -- Four roundings of doubles are within the eight half-steps added here, that of the sum within the microsecond. What
    -- is out on leases is charged when the last of them runs out, if not before.
    until_us = (leases and math.max(leases.last_us, y) or y) + (w + out + x / ch.b) * ch.d * (1 + 8.881784197001252e-16) + 1
    cell[n + 6] = ch.b
  else
    until_us = out
    if ch.kind == SLIDING and w > 0 then until_us = until_us + ch.a end
    cell[n + 6] = 0
  end
  cell[n + 2], cell[n + 3], cell[n + 4], cell[n + 5] = until_us, w, x, y
  cell[last] = true
  if leases then put_leases(cell, n, leases) end
end

-- The cell without what is over, for whoever has more sections than policies have limits.
local function sweep(cell, now, slack_ms)
  local kept, live = {cell[1]}, true
  for n = 2, #cell - 1, ITEMS do
    if cell[n + 1] ~= LEASE_TAG then live = cell[n + 2] + slack_ms * 1000 > now end
    for m = n, live and n + ITEMS - 1 or 0 do kept[#kept + 1] = cell[m] end
  end
  kept[#kept + 1] = true
  return kept
end

-- Writes a cell with its time to live. Returns nil, or the error: only a script's first write can be refused, for want
-- of memory; Redis lets a script that has written run to its end.
local function write_cell(key, cell, now, slack_ms)
  if #cell - 2 > MAX_SECTIONS * ITEMS then cell = sweep(cell, now, slack_ms) end
  local last, until_us = #cell - 1, now
  cell[1] = LAYOUT
  for n = 2, last, ITEMS do
    if cell[n + 1] == LEASE_TAG then
      cell[1] = LEASED_LAYOUT
    elseif cell[n + 2] > until_us then
      until_us = cell[n + 2]
    end
  end
  local value
  if last <= 1 + AT_ONCE * ITEMS then
    value = pack(format_of((last - 1) / ITEMS), unpack(cell, 1, last))
  else
    value = pack('B', cell[1])
    for n = 2, last, ITEMS do value = value .. pack('<' .. SECTION, unpack(cell, n, n + ITEMS - 1)) end
  end
  local ms = (until_us - now) / 1000
  local rest = ms % 1
  ms = ms - rest + slack_ms
  if rest > 0 then ms = ms + 1 end
  if ms < 1 then ms = 1 end
  if ms >= TWO53 then ms = TWO53 - 1 end
  return try('SET', key, value, 'PX', ms).err
end

-- What is known of nonces under this prefix, in one key of its own: "<dddd" since, widened, span, before, then the run id
-- of the server that wrote it. No nonce is known from before `since`; nonces taken before `widened` (0: never) are held
-- for `before` us after their timestamp, those since for `span`. False where nothing is known.
local function read_fence(key)
  local raw = try('GET', key)
  if type(raw) ~= 'string' or #raw < FENCE_BYTES then return false end
  local since, widened, span, before = unpack_from(FENCE_FORMAT, raw)
  return {since = since, widened = widened, span = span, before = before, run = string.sub(raw, FENCE_BYTES + 1)}
end

local function write_fence(key, fence)
  local value = pack(FENCE_FORMAT, fence.since, fence.widened, fence.span, fence.before) .. fence.run
  local reply = try('SET', key, value)
  return reply.err
end

-- Which run of which server this is; empty where the account may not ask.
local function server_run()
  local info = try('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

-- A list of numbers as doubles.
local function packed(list)
  local text = ''
  for n = 1, #list, AT_ONCE do
    local last = math.min(#list, n + AT_ONCE - 1)
    text = text .. pack('<' .. rep('d', last - n + 1), unpack(list, n, last))
  end
  return text
end

local function bad_value(key)
  local what = ' was not written by this version of Shield; it was left alone'
  return redis.error_reply('SHIELD the value at ' .. key .. what)
end
