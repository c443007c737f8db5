-- lease.lua: one node's leases of one token bucket: what it spent of those it has, what it gives back, and a new one.
--
-- KEYS[1]  the cell (see level.lua)
-- ARGV[1]  little-endian: "d" slack_ms; "c8ddddd" the bucket's section: id, limit, a, b, c, d (see level.lua); "ddddd" what
--          is asked for: want, least, lease, ttl_us, ahead_us; then "dddd" for each lease that is told of: lease, spent,
--          kept, until_us
--            want      units, 0 to 1e9; 0: none
--            least     fewer than these are not worth a lease; at most `want`
--            lease     its name, a random number < 2^53, never used twice
--            ttl_us    how long a new lease lives from its start on; with ahead_us at most LONGEST_LEASE_US
--            ahead_us  how far away that start may lie
--            spent     units of it since it was granted, told again each time: a report counts once, in whatever order
--            kept      1 the rest is still held, 0 it comes back
--            until_us  when the holder was told that it runs out
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME
--
-- Returns integers: now_us, status (1 done; 4 the value at the key is not Shield's, nothing done), granted, start_us,
-- until_us, units, ticks, out (the bucket after it: level and what is out on leases), then for each lease that was told of
-- 1, or 0 when it is not known here: it has run out, or was lost.
--
-- A lease is granted only where level + out + granted <= limit holds from start_us on: now, or where room is short when
-- enough has drained. Until then what is out may exceed the limit together with the level, and everybody else sees even
-- less. The level must be able to drain that far, so what is out alone never exceeds the limit.
-- Where nothing is granted start_us is when `least` units may be had, at the latest.
--
-- A lease that is told of and not known although it has time left was lost with the state (a failover, a reset): what was
-- spent of it is charged, at most to one limit below empty. Number budget: see level.lua.

local MAX_LEASES = 64

local blob, key = ARGV[1], KEYS[1]
if #KEYS ~= 1 or #blob < 96 or #blob % 32 ~= 0 then
  return redis.error_reply('SHIELD ' .. #blob .. ' bytes do not tell of leases of ' .. #KEYS .. ' keys')
end
local ch = {kind = BUCKET}
local slack_ms, want, least, name, ttl_us, ahead_us, position
slack_ms, ch.id, ch.limit, ch.a, ch.b, ch.c, ch.d, want, least, name, ttl_us, ahead_us, position =
  unpack_from('<dc8dddddddddd', blob)
local now = tonumber(ARGV[2]) or server_now()
local cell = read_cells({key})[1]
local n = cell and find(cell, ch.id)
if not cell or (n and cell[n + 1] ~= BUCKET_TAG) then return {now, 4} end

local s, changed, leases = {}, nil, nil
s.units, s.ticks, s.at, changed, s.out, leases = touch_bucket(ch, cell, n, now)
leases = leases or {last_us = 0}
local known = {}

while position <= #blob do
  local lease, spent, kept, until_us
  lease, spent, kept, until_us, position = unpack_from('<dddd', blob, position)
  local found
  for i = 1, #leases do
    if leases[i].lease == lease then found = i end
  end
  known[#known + 1] = found and 1 or 0
  if found then
    local one = leases[found]
    local news = math.min(spent - one.spent, one.units)
    if news > 0 then
      s.units, s.out = s.units + news, s.out - news
      one.units, one.spent = one.units - news, spent
    end
    if kept == 0 then
      s.out = s.out - one.units
      table.remove(leases, found)
    end
    changed = true
  elseif until_us > now and spent > 0 then
    s.units = math.max(s.units, math.min(s.units + spent, 2 * ch.limit))
    changed = true
  end
end

-- Microseconds until `units` more fit, 0 where they do.
local function wait_for(units)
  local excess = s.units + s.out + units - ch.limit
  if excess < 0 then return 0 end
  local us, rest = muldivmod(excess, ch.b, ch.a)
  return us + math.ceil((rest + s.ticks) / ch.a) + math.max(s.at - now, 0)
end

local granted, start_us, until_us = 0, now, 0
if want > 0 then
  local free = ch.limit - s.units - s.out - (s.ticks > 0 and 1 or 0)
  local coming = math.min(free + muldivmod(math.max(ahead_us - math.max(s.at - now, 0), 0), ch.a, ch.b), ch.limit - s.out)
  local half = math.max(want / 2, least)
  if #leases >= MAX_LEASES then
    granted = 0
  elseif free >= half then
    granted = math.min(free, want)
  elseif coming >= half then
    granted = math.min(coming, want)
  elseif free >= least then
    granted = free
  elseif coming >= least then
    granted = coming
  end
  if granted > 0 then
    start_us = now + wait_for(granted)
    until_us = start_us + ttl_us
    leases[#leases + 1] = {lease = name, units = granted, spent = 0, until_us = until_us}
    s.out = s.out + granted
    changed = true
  else
    start_us = math.max(s.out + least > ch.limit and leases.last_us or now, now) + wait_for(least)
  end
end

if changed then
  leases.last_us = 0
  for i = 1, #leases do leases.last_us = math.max(leases.last_us, leases[i].until_us) end
  keep(cell, n, ch, s.units, s.ticks, s.at, s.out, leases)
  local problem = write_cell(key, cell, now, slack_ms)
  if problem then return redis.error_reply(problem) end
end
local reply = {now, 1, granted, start_us, until_us, s.units, s.ticks, s.out}
for i = 1, #known do reply[8 + i] = known[i] end
return reply
