-- check.lua: one request, all its charges, one atomic step: all are taken or none.
--
-- KEYS     one per charge, all different: a string (token bucket, window) or a sorted set (concurrency)
-- ARGV[1]  doubles, little-endian: slack_ms, mode, then eight for each charge in the order of KEYS (see level.lua)
--            mode   0 decide; 1 a guard has refused already: take nothing, penalise
--            flags  1 enforced (else shadow) + 2 count_denied
--            cost   units, 0 to 2^53 - 1; 0 is a peek: always fits, changes nothing
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME, read once
-- ARGV[3+] for each concurrency charge in turn: the lease id its places are known by (text without a colon)
--
-- Returns integers: now_us, status, then five for each charge, the state after the step:
--   token bucket  verdict, units, ticks, at_us, 0
--   windows       verdict, cur, prev, start_us, end_us
--   concurrency   verdict, in_use, instant (us) at which enough places will have expired for this cost or 0, 0, 0
-- status   0 refused, nothing taken; 1 taken: every charge with verdict 0; 2 would fit, but Redis is out of memory,
--          nothing taken; 3 (alone) the boundaries of a calendar do not hold now: nothing taken, ask again with others
-- verdict  0 fits, 1 does not fit, 2 fits but could not be stored
--
-- A shadow charge that does not fit refuses nothing and is not taken. A refusal writes nothing, but for the penalties
-- of count_denied and for a state further ahead of the clock than its numbers explain, which could otherwise never
-- recover. Everything is read and validated before the first write, and no write after the first can fail. Number
-- budget: see level.lua.

local blob, count, leases = ARGV[1], #KEYS, 2
if #blob ~= 16 + 64 * count then
  return redis.error_reply('SHIELD ' .. #blob .. ' bytes of charges do not match ' .. count .. ' keys')
end
local slack_ms, refused, position = struct.unpack('<dd', blob)
local now = tonumber(ARGV[2]) or server_now()

local function read_leases(s)
  s.in_use = redis.call('ZCOUNT', s.key, format('(%.0f', now), '+inf')
end

-- When enough leases will have expired for the cost; 0 when none need to, or the cost never fits.
local function nth_expiry(s)
  local missing = s.in_use + s.cost - s.limit
  if s.fits or s.cost > s.limit then return 0 end
  local found = redis.call('ZRANGEBYSCORE', s.key, format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', missing - 1, 1)
  return tonumber(found[2])
end

local function take_leases(s)
  local members, expiry = {}, format('%.0f', now + s.a)
  for n = 1, s.cost do
    members[2 * n - 1], members[2 * n] = expiry, format('%s:%d', s.lease_id, n)
  end
  local reply = redis.pcall('ZADD', s.key, unpack(members))
  if type(reply) == 'table' then return reply.err end
  redis.call('ZREMRANGEBYSCORE', s.key, '-inf', format('%.0f', now))
  -- After a step of the clock older leases may outlive the new ones.
  local last = tonumber(redis.call('ZRANGE', s.key, -1, -1, 'WITHSCORES')[2])
  redis.call('PEXPIRE', s.key, format('%.0f', ceil((last - now) / 1000) + slack_ms))
  s.in_use = s.in_use + s.cost
end

local function take(s)
  if s.kind == CONCURRENCY then return take_leases(s) end
  local units, cur = s.units, s.cur
  if s.kind == BUCKET then s.units = units + s.cost else s.cur = cur + s.cost end
  local problem = write_state(s, now, slack_ms)
  if problem then s.units, s.cur = units, cur end
  return problem
end

-- Charges a refusal, up to empty and never beyond; writes what that, or the clock's rebase, has changed.
local function penalise(s)
  local changed = s.rebased
  local units, ticks, cur = s.units, s.ticks, s.cur
  local left = (s.flags == 3 and s.kind ~= CONCURRENCY) and remaining(s, now) or 0
  if s.kind == BUCKET and s.flags == 3 and (s.units < s.limit) then
    if s.cost <= left then s.units = units + s.cost else s.units, s.ticks = s.limit, 0 end
    changed = true
  elseif s.kind ~= BUCKET and left > 0 then
    s.cur = cur + (s.cost < left and s.cost or left)
    changed = true
  end
  if changed and write_state(s, now, slack_ms) then
    s.units, s.ticks, s.cur = units, ticks, cur
  end
end

local charges, found, missing = {}, redis.call('MGET', unpack(KEYS)), {}
for i = 1, count do
  local kind, flags, cost, limit, a, b, c, d
  kind, flags, cost, limit, a, b, c, d, position = struct.unpack('<dddddddd', blob, position)
  local s = {key = KEYS[i], kind = kind, flags = flags, cost = cost, limit = limit, a = a, b = b, c = c, d = d}
  charges[i] = s
  if kind == CONCURRENCY then
    leases = leases + 1
    s.lease_id = ARGV[leases]
    read_leases(s)
  elseif not found[i] then
    missing[#missing + 1] = s.key
  elseif not read_state(s, found[i]) then
    return bad_value(s)
  end
end

-- MGET answers nothing for a key of another type as well; writing there would reset it silently.
if #missing > 0 and redis.call('EXISTS', unpack(missing)) > 0 then
  for i = 1, #missing do
    if redis.call('EXISTS', missing[i]) > 0 then return bad_value({key = missing[i]}) end
  end
end

local admitted = refused == 0
for i = 1, count do
  local s = charges[i]
  if s.kind == BUCKET then
    touch_bucket(s, now)
  elseif s.kind ~= CONCURRENCY and not touch_window(s, now) then
    return {now, 3}
  end
  s.fits = s.cost == 0 or s.cost <= remaining(s, now)
  if not s.fits and s.flags % 2 == 1 then admitted = false end
end

local status = admitted and 1 or 0
for i = 1, count do
  local s = charges[i]
  if s.cost > 0 then
    if admitted and s.fits then
      local problem = take(s)
      if problem then
        if not string.find(problem, 'OOM', 1, true) then return redis.error_reply(problem) end
        status = 2
        break
      end
    elseif not admitted then
      penalise(s)
    elseif s.rebased then
      write_state(s, now, slack_ms)
    end
  end
end

local reply = {now, status}
for i = 1, count do
  local s, at = charges[i], 5 * i - 2
  reply[at] = s.fits and ((status == 2 and s.cost > 0) and 2 or 0) or 1
  if s.kind == BUCKET then
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = s.units, s.ticks, s.at, 0
  elseif s.kind == CONCURRENCY then
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = s.in_use, nth_expiry(s), 0, 0
  else
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = s.cur, s.prev, s.start, s.finish
  end
end
return reply
